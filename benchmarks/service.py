"""`clip-dfgs serve --api` under load by real clients: requests a second, times, errors; the gallery grows meanwhile.

    python benchmarks/service.py [--out results/service.csv]    # 240 rendered images, 8 clients, half a minute

Each client sends an image, a sentence or a bad upload, one after the other, over HTTP. After half of the time `embed`
adds images; the number of images that the last answers speak of is printed. Times depend on what else the machine does,
which the load average tells; CPU time of the service depends less on it.
"""
import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import requests

from clip_dfgs.gallery.gallery import find_images
from clip_dfgs.gallery.store import embed_gallery
from clip_dfgs.synthetic.domain import render_domain


def started(gallery, port):
    "The service as a process, when it answers."
    command = [sys.executable, '-m', 'clip_dfgs.cli', 'serve', gallery, '--api', '--port', str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert 'is at' in process.stdout.readline()
    return process


def cpu_seconds(process):
    "CPU time of a process of Linux so far."
    fields = Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12]))/os.sysconf('SC_CLK_TCK')


def client(url, image, until, rows):
    "Requests until a time; (kind, status, seconds, images of the gallery) of each."
    session, turn = requests.Session(), 0
    while time.time() < until:
        kind = ('image', 'text', 'bad upload')[turn % 3]
        data, file = dict(k=10), None
        if kind == 'text': data['text'] = 'a woman in a red coat'
        else: file = dict(image=image if kind == 'image' else b'no image')
        begun = time.perf_counter()
        answer = session.post(f'{url}/search', data=data, files=file, timeout=60)
        rows.append((kind, answer.status_code, time.perf_counter() - begun, answer.json().get('images')))
        turn += 1


def main(identities, clients, seconds, out):
    home = Path(tempfile.mkdtemp())
    for seed, name in ((0, 'town'), (1, 'more')):
        render_domain(home/name, seed, identities, 4, test_share=1., progress=False)
    embed_gallery(find_images([home/'town']), 'pedestrians', home/'gallery', progress=False)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    process, rows = started(home/'gallery', port), []
    begun = cpu_seconds(process)
    image = next((home/'town'/'query').iterdir()).read_bytes()
    until = time.time() + seconds
    asked = (f'http://127.0.0.1:{port}', image, until, rows)
    threads = [threading.Thread(target=client, args=asked) for _ in range(clients)]
    for t in threads: t.start()
    time.sleep(seconds/2)
    os.rename(home/'more', home/'town'/'more')
    embed_gallery(find_images([home/'town']), 'pedestrians', home/'gallery', progress=False)
    for t in threads: t.join()
    load, cpu = os.getloadavg()[0], 1000*(cpu_seconds(process) - begun)/max(1, len(rows))
    process.terminate()
    code = process.wait()
    table = pd.DataFrame(rows, columns=['kind', 'status', 'seconds', 'images'])
    times = table.groupby(['kind', 'status'])['seconds']
    shown = pd.DataFrame(dict(requests=times.size(), median_ms=1000*times.median(), p99_ms=1000*times.quantile(.99)))
    shown.loc[('all', ''), :] = [len(table), *1000*table['seconds'].quantile([.5, .99])]
    print(shown.round(1).to_string())
    grown = table['images'].dropna()
    print(f'{len(table)/seconds:.0f} requests a second by {clients} clients; errors of the service: '
          f'{(table["status"] >= 500).sum() - (table["status"] == 503).sum()}, asked to wait: '
          f'{(table["status"] == 503).sum()}; images: {grown.iloc[0]:.0f} at first, {grown.iloc[-1]:.0f} at the end; '
          f'ended with {code}; '
          f'largest time {np.max(table["seconds"]):.2f} s; {cpu:.0f} ms of CPU a request; load average {load:.1f}')
    if not out: return
    facts = dict(clients=clients, a_second=round(len(table)/seconds, 1), cpu_ms=round(cpu, 1), load=round(load, 1))
    shown.round(1).reset_index().assign(**facts).to_csv(out, index=False)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--identities', type=int, default=30)
    parser.add_argument('--clients', type=int, default=8)
    parser.add_argument('--seconds', type=float, default=15)
    parser.add_argument('--out', type=Path)
    main(**vars(parser.parse_args()))
