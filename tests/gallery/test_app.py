"The search page and the service: what they answer, what they never give, load, growth and a kill, and a browser."
import csv
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import pytest
import requests
from PIL import Image

from clip_dfgs.gallery.app import answers, serve_gallery
from clip_dfgs.gallery.gallery import Gallery, find_images
from clip_dfgs.gallery.store import embed_gallery
from clip_dfgs.synthetic.domain import render_domain
from command import said

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A gallery of two domains; beside it a secret file."
    home = tmp_path_factory.mktemp('place')
    for seed, name, cameras in ((5, 'town', 3), (6, 'quay', 2)):
        render_domain(home/name, seed, 12, cameras, workers=1, test_share=1., progress=False)
    words = [f'market1501:{home/name}' for name in ('town', 'quay')]
    embed_gallery(find_images(words, domains=['town', 'quay']), 'pedestrians', home/'gallery', progress=False)
    Image.new('RGB', (64, 128), 'red').save(home/'secret.png')
    return home


@pytest.fixture(scope='module')
def gallery(place): return Gallery.load(place/'gallery')


@pytest.fixture(scope='module')
def url(gallery):
    "The address of the running page."
    server, url = serve_gallery(gallery, wait=False)
    yield url
    server.should_exit = True


def search(url, data=None, **form):
    "What the service answers to a form, and to an image."
    answer = requests.post(f'{url}search', data=form, files=None if data is None else dict(image=data), timeout=60)
    return answer.json() | dict(status=answer.status_code)


# ---- answers

def test_an_answer_is_the_search(gallery, url):
    path = gallery.records['path'][7]
    got = search(url, Path(path).read_bytes(), k=9, camera=['c1', 'c2'], domain='town')
    want = gallery.search(path, k=9, camera=['c1', 'c2'], domain=['town'])
    assert [a['path'] for a in got['answers']] == want['path'].tolist() and got['note'].startswith('9 of 120 images')
    assert [a['score'] for a in got['answers']] == want['score'].tolist()
    for name in ('identity', 'camera', 'domain'): assert [a[name] for a in got['answers']] == want[name].tolist()
    assert [a['file'] for a in got['answers']] == [Path(p).name for p in want['path']]
    again = search(url, like=gallery.digests[7], k=100)
    assert [a['path'] for a in again['answers']] == gallery.search(path, k=100)['path'].tolist()
    words = gallery.search(text='a man in red', k=9)
    assert [a['path'] for a in search(url, text=' a man in red ', k=9)['answers']] == words['path'].tolist()


def bomb():
    "A small file of 400 million pixels."
    buffer = io.BytesIO()
    Image.new('1', (20_000, 20_000)).save(buffer, 'PNG')
    return buffer.getvalue()


def test_what_cannot_be_asked_is_one_line(url):
    for data in (b'', b'hello', b'PK\3\4' + b'\0'*99, b'<svg onload=x>', b'\xff\xd8\xff\xe0' + b'\0'*300, bomb()):
        got = search(url, data)
        assert got['status'] == 400 and got['detail'].startswith('the upload cannot be read') and '\n' not in str(got)
    for form, words in ((dict(like='gone'), 'no longer'), (dict(text='red', camera='9'), "no camera '9'")):
        got = search(url, **form)
        assert got['status'] == 400 and words in got['detail'], got
    for form in (dict(k=0), dict(k='x'), dict(text='red '*2000)): assert search(url, **form)['status'] == 422


def test_the_newest_images_come_first(gallery):
    path = gallery.records['path'][50]
    before = Path(path).stat()
    os.utime(path, (2e9, 2e9))
    found, _ = answers(gallery, k=100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found['path'][0] == path and len(found) == 100


def test_the_service_sees_what_embed_added(place, tmp_path):
    shutil.copytree(place/'town'/'query', tmp_path/'shots')
    embed_gallery(find_images(tmp_path/'shots'), 'pedestrians', tmp_path/'g', progress=False)
    server, url = serve_gallery(Gallery.load(tmp_path/'g'), wait=False)
    n = requests.get(f'{url}stats').json()['images']
    Image.new('RGB', (64, 128), 'red').save(tmp_path/'shots'/'new.png')
    embed_gallery(find_images(tmp_path/'shots'), 'pedestrians', tmp_path/'g', progress=False)
    first, = search(url, (tmp_path/'shots'/'new.png').read_bytes(), k=1)['answers']
    assert first['file'] == 'new.png' and requests.get(f'{url}stats').json()['images'] == n + 1
    (tmp_path/'g'/'gallery.json').write_text('') # a damaged one does not end the service
    assert len(search(url, text='a man', k=3)['answers']) == 3
    answer = requests.post(f'{url}reload', data=b'')
    assert answer.status_code == 409 and 'is damaged' in answer.json()['detail']
    server.should_exit = True


# ---- what is never given

def test_only_what_was_embedded_leaves(place, gallery, url):
    "No file by any spelling of its path; no image whose file was replaced by a link."
    for file in (place/'secret.png', place/'gallery'/'gallery.json', gallery.records['path'][0], '/etc/passwd'):
        body, whole = Path(file).read_bytes(), urllib.parse.quote(str(file))
        up = '../'*12 + whole.lstrip('/')
        for route in ('image/', 'page/', ''):
            for path in (whole, whole.replace('/', '%2f'), up, up.replace('/', '%2f'), up.replace('.', '%2e'),
                         '/' + whole, f'file://{whole}', whole + '%00.png'):
                with socket.create_connection(urllib.parse.urlsplit(url).netloc.split(':')) as s:
                    s.sendall(f'GET /{route}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n'.encode())
                    answer = b''.join(iter(lambda s=s: s.recv(65536), b''))
                assert re.match(rb'HTTP/1.1 4\d\d', answer) and body not in answer, (route, path)
    file, digest = Path(gallery.records['path'][30]), gallery.digests[30]
    assert requests.get(f'{url}image/{digest}?original=true').content == file.read_bytes()
    assert Image.open(io.BytesIO(requests.get(f'{url}image/{digest}').content)).size == (128, 256)
    file.rename(place/'aside')
    file.symlink_to(place/'secret.png')
    assert requests.get(f'{url}image/{digest}?original=true').status_code == 404
    (place/'aside').rename(file)


def test_token_hosts_and_sizes(gallery, url):
    server, locked = serve_gallery(gallery, wait=False, page=False, token='geheim')
    for headers, status in (({}, 401), (dict(Authorization='Bearer x'), 401),
                            (dict(Authorization='Bearer geheim'), 200), (dict(Cookie='token=geheim'), 200)):
        assert requests.get(f'{locked}stats', headers=headers).status_code == status
    assert requests.get(f'{locked}healthz').json() == dict(status='ok') # without a token
    assert requests.post(f'{locked}search', data=dict(text='a man')).status_code == 401
    browser = requests.Session()
    assert browser.get(f'{locked}?token=x').status_code == 401
    page = browser.get(f'{locked}?token=geheim')
    assert page.status_code == 200 and page.url == f'{locked}docs' and 'POST /search' in page.text
    assert '/search' in browser.get(f'{locked}openapi.json').json()['paths']
    server.should_exit = True
    assert requests.get(url, headers=dict(Host='evil.example')).status_code == 421
    assert requests.post(f'{url}search', data=iter([b'x'])).status_code == 411 # in chunks, of unknown length
    assert requests.get(f'{url}stats', headers={'Content-Length': str(10**9)}).status_code == 413
    policy = requests.get(url).headers['content-security-policy']
    assert "default-src 'self'" in policy and 'http' not in policy
    other = socket.gethostbyname(socket.gethostname())
    if not other.startswith('127.'):
        with socket.socket() as s: assert s.connect_ex((other, int(url.split(':')[2].strip('/')))) != 0


# ---- load, and a kill

def test_searches_in_flight_are_bounded(gallery, monkeypatch):
    "Two wait; the others are told to ask again, and nothing is lost afterwards."
    began, go = threading.Semaphore(0), threading.Event()
    real = Gallery.search

    def slowly(self, *args, **more):
        began.release()
        assert go.wait(60)
        return real(self, *args, **more)

    monkeypatch.setattr(Gallery, 'search', slowly)
    server, url = serve_gallery(gallery, wait=False, waiting=2)
    got = []
    threads = [threading.Thread(target=lambda: got.append(search(url, text='a man', k=2)['status'])) for _ in range(6)]
    for t in threads: t.start()
    assert began.acquire(timeout=60)
    while len(got) < 4: time.sleep(.01)
    assert got == [503]*4 and requests.get(f'{url}healthz').ok
    go.set()
    for t in threads: t.join()
    assert sorted(got) == [200]*2 + [503]*4 and search(url, text='a man')['status'] == 200
    assert requests.get(f'{url}stats').json()['busy'] == 4
    server.should_exit = True


@pytest.mark.parametrize('hows', [[signal.SIGTERM], pytest.param([signal.SIGKILL]*2, marks=pytest.mark.slow)])
def test_the_command_is_killed_and_started_again(place, hows):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, '-m', 'clip_dfgs.cli', 'serve', str(place/'gallery'), '--api', '--port', port]
    env = dict(os.environ, OMP_NUM_THREADS='1', CLIP_DFGS_TOKEN='geheim')
    for how in hows:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as p:
            assert f'http://127.0.0.1:{port}/; interrupt' in p.stdout.readline()
            headers = dict(Authorization='Bearer geheim')
            found = requests.post(f'http://127.0.0.1:{port}/search', data=dict(text='a man', k=1), headers=headers)
            assert len(found.json()['answers']) == 1
            p.send_signal(how)
            assert p.stderr.read() == '' and p.wait() == -how
    assert len(Gallery.load(place/'gallery')) == 120


def test_serve_says_what_is_wrong(place, tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        taken = str(s.getsockname()[1])
        for words, line in (((tmp_path/'nothing',), 'is not there'), ((place/'town',), 'is no gallery'),
                            ((place/'gallery', '--port', '70000'), 'between 1 and 65535'),
                            ((place/'gallery', '--port', taken), taken)):
            code, _, err = said('serve', *words)
            assert code == 2 and line in err and err.strip().count('\n') == 0, err


# ---- in a browser

@pytest.fixture(scope='module')
def browser():
    "Debian's chromium without a window."
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright drives the browser')
    if not CHROMIUM: pytest.skip('no chromium here (apt-get install chromium)')
    quiet = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
             '--disable-component-update', '--disable-sync']
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390])
def page(browser, url, request):
    "The page, open; it asked nobody but itself, had no error, and is as wide as the window."
    page, hosts, wrong = browser.new_page(viewport=dict(width=request.param, height=800)), set(), []
    page.set_default_timeout(60_000)
    page.on('request', lambda r: hosts.add(urllib.parse.urlsplit(r.url).netloc))
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.goto(url)
    says(page, 'the newest first')
    yield page
    assert hosts <= {urllib.parse.urlsplit(url).netloc, ''} and not wrong
    assert page.evaluate('document.documentElement.scrollWidth') == request.param
    page.close()


def says(page, words):
    "Wait until the page's line has these words; the line."
    page.wait_for_function('w => document.querySelector("#said").innerText.includes(w)', arg=words)
    return page.locator('#said').inner_text()


def labels(page): return page.locator('figcaption').all_inner_texts()


def test_search_look_mark_and_export(page, gallery):
    assert len(labels(page)) == 60
    page.locator('#more').click()
    page.wait_for_function('() => document.querySelectorAll("figure").length === 120')

    page.set_input_files('#file', gallery.records['path'][7])
    says(page, 'nearest first, to the image')
    ranked = list(gallery.search(gallery.records['path'][7], k=60).itertuples())
    for text, r in zip(labels(page), ranked, strict=True):
        assert [f'{r.score:.3f}', r.identity, f'{r.camera} · {r.domain}', Path(r.path).name] == sorted(
            text.split('\n'), key=lambda s: (not re.match(r'-?[01]\.', s), s != r.identity, '·' not in s))

    page.locator('figure > button').nth(2).click()
    third = ranked[2]
    assert all(words in page.locator('#large dl').inner_text() for words in (third.path, third.camera, third.identity))
    assert page.locator('#original').get_attribute('href') == f'image/{gallery.digests[third.row]}?original=true'
    page.locator('#mark').click()
    page.locator('#again').click()
    says(page, f'nearest first, to {Path(third.path).name}')
    own = gallery.search(rows=[third.row], k=60)
    assert f'{own["score"][1]:.3f}' in labels(page)[1]

    page.locator('#domains summary').click()
    page.get_by_label('quay').check()
    every = '() => [...document.querySelectorAll("figcaption")].every(c => c.innerText.includes("quay"))'
    page.wait_for_function(every)
    page.locator('#domains summary').click()
    page.locator('figure input').first.check()
    with page.expect_download() as waiting: page.locator('#export').click()
    with open(waiting.value.path(), newline='') as file: rows = list(csv.DictReader(file))
    first = gallery.search(rows=[third.row], k=1, domain='quay').iloc[0]
    assert [(r['path'], r['identity'], r['camera'], r['domain']) for r in rows] == [
        (r.path, r.identity, r.camera, r.domain) for r in (third, first)]
    assert [float(r['score']) for r in rows] == [third.score, first.score]


def test_a_mistake_is_a_line_and_a_sentence_is_text(page, tmp_path):
    file = tmp_path/'<img src=x onerror=alert(1)>.png'
    file.write_bytes(b'\xff\xd8\xff\xe0 half an image')
    page.set_input_files('#file', file)
    assert says(page, 'cannot be read').startswith('the upload cannot be read (')
    page.fill('#text', '<b>a man</b><script>document.title = "taken"</script>')
    page.get_by_role('button', name='Search', exact=True).click()
    assert '<b>a man</b>' in says(page, 'nearest first') and page.title() != 'taken'
