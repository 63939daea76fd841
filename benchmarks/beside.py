"""Ways of doing the same, side by side in one process."""
import time


def _memory(line):
    "A line of /proc/self/status in GB: VmRSS (now) or VmHWM (peak)."
    with open('/proc/self/status') as lines: return next(int(s.split()[1]) for s in lines if s.startswith(line))/1e6


def beside(
    what, # is measured, for the print
    ways:dict, # name -> a call without arguments; the first is ours
    repeats:int=5, # of all ways in turn
)->dict: # name -> what the last call returned
    "Print least CPU and wall seconds of each way, its peak of memory above what was held, and its CPU time to ours."
    cpu, wall, peak, found = ({name: [] for name in ways} for _ in range(4))
    for _ in range(repeats):
        for name, work in ways.items():
            with open('/proc/self/clear_refs', 'w') as file: file.write('5') # forget the peak so far
            held, begun, wall_begun = _memory('VmRSS'), time.process_time(), time.perf_counter()
            found[name] = work()
            cpu[name].append(time.process_time() - begun)
            wall[name].append(time.perf_counter() - wall_begun)
            peak[name].append(_memory('VmHWM') - held)
    ours = min(cpu[next(iter(ways))])
    for name in ways:
        print(f'{what:<34}{name:<26}{min(cpu[name]):>9.4f} s CPU{min(wall[name]):>9.4f} s{max(peak[name]):>7.2f} GB'
              f'{min(cpu[name])/ours:>7.2f} of ours', flush=True)
    return found


def installed(name):
    "A package, None where it is not installed."
    import importlib
    try: return importlib.import_module(name)
    except ImportError: return None
