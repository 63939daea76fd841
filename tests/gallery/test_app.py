"The page of a gallery: what it answers, what it never gives, and how it looks to a browser."
import http.server
import io
import json
import os
import re
import shutil
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import pytest
from PIL import Image

from clip_dfgs.gallery.app import _line, _Live, answers
from clip_dfgs.gallery.gallery import Gallery, find_images
from clip_dfgs.gallery.store import embed_gallery
from clip_dfgs.synthetic.domain import render_domain
from command import said

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A gallery of two domains; beside it a secret file, and links to it."
    home = tmp_path_factory.mktemp('place')
    for seed, name, cameras in ((5, 'town', 3), (6, 'quay', 2)):
        render_domain(home/name, seed, 12, cameras, workers=1, test_share=1., progress=False)
    words = [f'market1501:{home/name}' for name in ('town', 'quay')]
    embed_gallery(find_images(words, domains=['town', 'quay']), 'pedestrians', home/'gallery', progress=False)
    (home/'secret.txt').write_text('the secret')
    Image.new('RGB', (64, 128), 'red').save(home/'secret.png')
    (home/'gallery'/'link.txt').symlink_to(home/'secret.txt')
    (home/'town'/'query'/'link.png').symlink_to(home/'secret.png')
    return home


@pytest.fixture(scope='module')
def gallery(place): return Gallery.load(place/'gallery')


@pytest.fixture(scope='module')
def url(gallery):
    "The address of the running page."
    pytest.importorskip('gradio', reason='the page needs gradio')
    from clip_dfgs.gallery.app import serve_gallery
    page, url = serve_gallery(gallery, wait=False)
    yield url
    page.close(verbose=False)


# ---- answers

def test_an_answer_is_the_search(gallery):
    path = gallery.records['path'][7]
    found, line = answers(gallery, data=Path(path).read_bytes(), k=9, camera=['c1', 'c2'], domain=['town'])
    want = gallery.search(path, k=9, camera=['c1', 'c2'], domain=['town'])
    assert found['row'].tolist() == want['row'].tolist() and line.startswith('9 of 120 images')
    found, _ = answers(gallery, text=' a man in red ', k=9)
    assert found['row'].tolist() == gallery.search(text=[' a man in red '], k=9)['row'].tolist()
    found, _ = answers(gallery, like=path, k=9)
    assert found['row'].tolist() == gallery.search(path, k=9)['row'].tolist()


def bomb():
    "A small file of 400 million pixels."
    buffer = io.BytesIO()
    Image.new('1', (20_000, 20_000)).save(buffer, 'PNG')
    return buffer.getvalue()


UPLOADS = dict(empty=lambda: b'', text=lambda: b'hello', zip=lambda: b'PK\3\4' + b'\0'*99,
               page=lambda: b'<svg onload=x>', half=lambda: b'\xff\xd8\xff\xe0' + b'\0'*300, bomb=bomb)


@pytest.mark.parametrize('what', UPLOADS)
def test_an_upload_that_is_no_picture_is_a_line(what, gallery):
    found, line = answers(gallery, data=UPLOADS[what]())
    assert found is None and line.startswith('the upload cannot be read') and '\n' not in line


def test_the_newest_images_come_first(gallery, place):
    path = gallery.records['path'][50]
    before = Path(path).stat()
    os.utime(path, (2e9, 2e9))
    found, line = answers(gallery, k=100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found['path'][0] == path and len(found) == 100 and 'the newest are shown' in line


def test_the_page_sees_what_embed_added(place, tmp_path):
    shutil.copytree(place/'town'/'query', tmp_path/'shots')
    embed_gallery(find_images(tmp_path/'shots'), 'pedestrians', tmp_path/'g', progress=False)
    live = _Live(Gallery.load(tmp_path/'g'))
    n = len(live())
    Image.new('RGB', (64, 128), 'red').save(tmp_path/'shots'/'new.png')
    embed_gallery(find_images(tmp_path/'shots'), 'pedestrians', tmp_path/'g', progress=False)
    assert len(live()) == n + 1
    (tmp_path/'g'/'gallery.json').write_text('')
    assert len(live()) == n + 1 # a damaged one does not end the page


def test_mistakes_are_lines(gallery):
    for asked, words in ((dict(like='gone.png'), 'no longer'), (dict(text='a man', k=0), 'k=0'),
                         (dict(text='red', camera=['9']), "no camera '9'")):
        found, line = answers(gallery, **asked)
        assert found is None and words in line and '\n' not in line


def test_a_sentence_without_end_is_a_line(gallery):
    "One of 60 MB kept the page from everybody else for minutes."
    found, line = answers(gallery, text='red '*15_000_000)
    assert found is None and '60,000,000 characters' in line and len(line) < 100
    assert answers(gallery, text='red '*500, k=3)[0] is not None


def test_nothing_in_a_line_is_html():
    assert _line('<img src=x onerror=alert(1)>').count('<') == 4


# ---- what the page never gives

def status(url, data=None, **headers):
    "(status, body) of a request."
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e: return e.code, e.read()


def spelt(path):
    "Ways to write a path in an address."
    whole, name = urllib.parse.quote(str(path)), str(path).lstrip('/')
    up = '../'*12 + name
    yield from (whole, whole.replace('/', '%2f'), urllib.parse.quote(up), up.replace('/', '%2f'),
                up.replace('.', '%2e'), '/' + whole, f'file://{whole}', whole.replace('/', '%5c'), f'./{up}',
                whole + '%00.png', f'~/{up}')


def test_no_file_is_given(place, gallery, url):
    "However it is called: the secret, links to it, the gallery's own files, its pictures, the system's."
    files = [place/'secret.txt', place/'secret.png', place/'gallery'/'link.txt', place/'town'/'query'/'link.png',
             place/'gallery'/'gallery.json', gallery.records['path'][0], '/etc/passwd', Path(__file__)]
    for file in files:
        body = Path(file).read_bytes()
        for route in ('gradio_api/file=', 'file=', 'gradio_api/file/', 'static/', 'assets/', 'gradio_api/static/',
                      'theme.css/', 'gradio_api/proxy=', 'gradio_api/stream/', 'svelte/', 'custom_component/', ''):
            for path in spelt(file):
                code, got = status(url + route + path)
                assert code >= 400 and body not in got, (route, path, code)


def asked(url, number, data):
    "What an event of the page says to hand-made data: its last message."
    session = uuid.uuid4().hex
    body = json.dumps(dict(data=data, fn_index=number, session_hash=session, event_data=None, trigger_id=None)).encode()
    code, got = status(url + 'gradio_api/queue/join?', body, **{'Content-Type': 'application/json'})
    if code >= 400: return got.decode()
    _, got = status(url + f'gradio_api/queue/data?session_hash={session}')
    return got.decode()


def test_a_request_of_nonsense_is_a_line(url, capfd):
    "An event that there is not, no body, too large a body: refused, with a line at the terminal and no traceback."
    kind = {'Content-Type': 'application/json'}
    join = url + 'gradio_api/queue/join'
    code, got = status(join, json.dumps(dict(fn_index=999, data=[], session_hash='a')).encode(), **kind)
    assert (code, got) == (400, b'the request cannot be understood')
    assert status(join, b'', **kind)[0] == 422
    request = urllib.request.Request(join, b'{}', kind | {'Content-Length': str(10**9)})
    with pytest.raises(urllib.error.HTTPError, match='413'): urllib.request.urlopen(request, timeout=60)
    err = capfd.readouterr().err
    assert 'cannot be answered (KeyError)' in err and 'Traceback' not in err
    assert status(url)[0] == 200


def functions(url):
    "Number of each event of the page, and how many things it takes."
    config = json.loads(status(url + 'config')[1])
    return {d['id']: len(d['inputs']) for d in config['dependencies']}


def uploaded(url, data):
    "Where gradio puts an upload."
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n' + data + b'\r\n--x--\r\n'
    code, got = status(url + 'gradio_api/upload', body, **{'Content-Type': 'multipart/form-data; boundary=x'})
    assert code == 200, got
    return json.loads(got)[0]


def test_a_path_in_place_of_an_upload_is_refused(place, gallery, url):
    "The browser says where an upload was put: no other file can be named so."
    there = uploaded(url, Path(gallery.records['path'][0]).read_bytes())
    file, answered = dict(path=there, meta=dict(_type='gradio.FileData'), orig_name='x.png'), 0
    for number, takes in functions(url).items():
        if takes == 6: answered += 'image.jpeg' in asked(url, number, [file, '', None, 6, [], []])
    assert answered # an upload is taken, in the same way
    for path in (place/'secret.png', place/'gallery'/'link.txt', place/'town'/'query'/'link.png', '/etc/passwd'):
        for number, takes in functions(url).items():
            if takes != 6: continue
            file = dict(path=str(path), meta=dict(_type='gradio.FileData'), orig_name='x.png')
            got = asked(url, number, [file, '', None, 6, [], []])
            assert '"success":false' in got.replace(' ', '') or 'detail' in got, (number, got[:500])
            assert 'data:image' not in got and 'image.jpeg' not in got


def test_the_page_opens_with_the_newest_images_and_their_names(url, gallery):
    "Captions hold file name and camera as the gallery has them; no folder of the files is in the answer."
    said = [asked(url, number, [12, [], []]) for number, takes in functions(url).items() if takes == 3]
    shown = [text for text in said if 'the newest are shown' in text]
    assert len(shown) == 1 and shown[0].count('image.jpeg') >= 12
    names = [Path(path).name for path in gallery.records['path']]
    assert sum(name in shown[0] for name in names) >= 12
    assert str(Path(gallery.records['path'][0]).parent) not in shown[0]


def test_nothing_is_fetched(url):
    "An address in place of an upload is not asked."
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_error(404)
        def log_message(self, *words): pass

    server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = f'http://127.0.0.1:{server.server_port}/x.png'
    for number, takes in functions(url).items():
        if takes != 6: continue
        for file in (dict(path=there), dict(path=there, url=there), dict(path='x', url=there)):
            got = asked(url, number, [file | dict(meta=dict(_type='gradio.FileData')), '', None, 6, [], []])
            assert 'image.jpeg' not in got
    status(url + f'gradio_api/proxy={there}')
    status(url + f'gradio_api/file={there}')
    server.shutdown()
    assert not hits


def test_the_page_listens_to_this_machine(url):
    assert url.startswith('http://127.0.0.1:')
    port = int(url.split(':')[2].strip('/'))
    other = socket.gethostbyname(socket.gethostname())
    if other.startswith('127.'): pytest.skip('this machine has no other address')
    with socket.socket() as s: assert s.connect_ex((other, port)) != 0


def test_the_browser_is_told_to_stay(url):
    with urllib.request.urlopen(url) as answer: policy = answer.headers['content-security-policy']
    assert "default-src 'self'" in policy and 'http' not in policy


def test_serve_says_what_is_wrong(place, gallery, tmp_path):
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


@pytest.fixture
def page(browser, url):
    "The page, open; it asked nobody but itself."
    page, hosts = browser.new_page(viewport=dict(width=1280, height=900)), set()
    page.set_default_timeout(120_000)
    page.on('request', lambda r: hosts.add(urllib.parse.urlsplit(r.url).netloc))
    page.goto(url)
    page.wait_for_selector('#found')
    yield page
    assert hosts <= {urllib.parse.urlsplit(url).netloc, ''}
    page.close()


def says(page, words):
    "Wait until the page's line has these words; the line."
    line = page.locator('.said')
    page.wait_for_function('w => document.querySelector(".said").innerText.includes(w)', arg=words)
    return line.inner_text()


def labels(page):
    "What stands below the results."
    page.wait_for_selector('#found img')
    return [text.strip() for text in page.locator('#found .caption-label').all_inner_texts()]


def test_upload_text_filter_and_click(page, gallery):
    query = gallery.records['path'][7]
    page.set_input_files('input[type=file]', query)
    says(page, 'nearest first, to the image')
    rank = [r for r in gallery.search(query, k=24).itertuples()]
    page.wait_for_function('() => document.querySelectorAll("#found img").length === 24')
    assert [re.split(r'\s+', text)[1] for text in labels(page)] == [f'{r.score:.3f}' for r in rank]
    sizes = page.locator('#found img').evaluate_all('all => all.map(i => i.getBoundingClientRect().width)')
    assert min(sizes) >= 96

    page.locator('#found button').nth(2).click()
    says(page, 'that was clicked')
    own = gallery.search(rows=[rank[2].row], k=24)
    assert re.split(r'\s+', labels(page)[1])[1] == f'{own["score"][1]:.3f}'

    page.get_by_label('only these domains').click()
    page.get_by_role('option', name='quay').click()
    page.wait_for_function("""() => {
        const below = [...document.querySelectorAll("#found .caption-label")]
        return below.length && below.every(c => c.innerText.includes("quay")) }""")
    says(page, 'that was clicked')

    page.fill('textarea', 'a woman in a red coat')
    page.get_by_role('button', name='Search').click()
    says(page, '“a woman in a red coat”')
    words = gallery.search(text=['a woman in a red coat'], k=24, domain=['quay'])
    page.wait_for_function('s => document.querySelector("#found .caption-label").innerText.includes(s)',
                           arg=f'{words["score"][0]:.3f}')
    assert all('quay' in text for text in labels(page))


def test_an_unreadable_upload_is_a_line_on_the_page(page, tmp_path):
    for name in ('half.jpg', '<img src=x onerror=alert(1)>.png', 'ü 😀.png'):
        (tmp_path/name).write_bytes(b'\xff\xd8\xff\xe0 half a picture')
        page.set_input_files('input[type=file]', tmp_path/name)
        assert says(page, 'cannot be read').startswith('the upload cannot be read (')
        page.get_by_label('Clear').or_(page.get_by_label('Remove')).first.click()
        page.fill('textarea', 'a man')
        page.get_by_role('button', name='Search').click()
        says(page, '“a man”')


def test_a_sentence_is_text(page):
    page.fill('textarea', '<b>a man</b>\n<script>document.title = "taken"</script>')
    page.get_by_role('button', name='Search').click()
    assert '<b>a man</b>' in says(page, 'nearest first')
    assert page.title() != 'taken'
