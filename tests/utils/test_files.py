"Files that are whole or not there, names that are nearly right, and which files of a folder are images."
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_dfgs.utils.checks import check_choice
from clip_dfgs.utils.files import IMAGE_SUFFIXES, atomic_write, hidden, image_files, left_out
from clip_dfgs.utils.files import stable_shuffle
from clip_dfgs.utils.files import write_text


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text('old', tmp_path/'note.txt')
    with pytest.raises(error), atomic_write(tmp_path/'note.txt') as part:
        part.write_text('ne')
        raise error
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [('note.txt', 'old')]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    write_text('old', tmp_path/'note.txt')
    code = ('import sys, time; from clip_dfgs.utils.files import atomic_write\n'
            'with atomic_write(sys.argv[1]) as part: part.write_text("ne"); print("half", flush=True); time.sleep(60)')
    writer = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'note.txt')], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b'half\n'
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert (tmp_path/'note.txt').read_text() == 'old' and image_files(tmp_path) == []


def test_a_new_file_may_be_read_by_those_who_may_read_others(tmp_path):
    usual = tmp_path/'usual.txt'
    usual.touch()
    with atomic_write(tmp_path/'new.bin') as part:
        part.unlink()
        part.touch(0o600)
    assert (tmp_path/'new.bin').stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize('typed, words', [('dfg', "did you mean 'dfgs'"), ('', 'choose one of pk, gs, dfgs'),
                                          (None, 'choose one of'), (3, 'choose one of')])
def test_a_value_that_is_not_known(typed, words):
    with pytest.raises(ValueError, match=words) as said: check_choice('sampler', typed, ('pk', 'gs', 'dfgs'))
    assert 'unknown sampler' in str(said.value) and '\n' not in str(said.value)


@pytest.mark.parametrize('name, is_hidden', [
    ('.ipynb_checkpoints', True), ('._a.jpg', True), ('__MACOSX', True), ('@eaDir', True), ('#recycle', True),
    ('$RECYCLE.BIN', True), ('Thumbs.db', True), ('desktop.ini', True), ('@anna', False), ('anna', False),
    ('-1', False), ('__anna', False), ('#7', False)])
def test_what_belongs_to_tools(name, is_hidden): assert hidden(name) == is_hidden


def test_endings_of_images(tmp_path):
    names = [f'{i}.b{spell(e)}' for i, e in enumerate(IMAGE_SUFFIXES) for spell in (str.lower, str.upper, str.title)]
    for name in names: (tmp_path/name).touch()
    assert len(image_files(tmp_path)) == len(names) and left_out(tmp_path) == ''


def test_links_that_lead_nowhere_are_counted(tmp_path):
    for name in ('anna', 'other.png'): (tmp_path/name).symlink_to(tmp_path/'nowhere')
    assert image_files(tmp_path) == [] and left_out(tmp_path) == '2 files are not read: 2 broken links'


def test_a_folder_linked_into_itself_is_read_once(tmp_path):
    for who in 'ab':
        (tmp_path/who).mkdir()
        (tmp_path/who/'1.jpg').touch()
        for loop in range(8): (tmp_path/who/f'loop{loop}').symlink_to(tmp_path)
    begin = time.monotonic()
    found = image_files(tmp_path, deep=True)
    assert sorted(os.path.realpath(p) for p in found) == [str((tmp_path/w/'1.jpg').resolve()) for w in 'ab']
    assert time.monotonic() - begin < 5


def test_a_folder_called_like_an_image_is_no_image(tmp_path):
    (tmp_path/'album.jpg').mkdir()
    (tmp_path/'album.jpg'/'1.png').touch()
    assert image_files(tmp_path) == [] and [p.name for p in image_files(tmp_path, deep=True)] == ['1.png']


@given(st.sets(st.integers(0, 99)), st.integers(0, 5))
def test_the_order_of_digests_depends_on_values_and_key_alone(values, key):
    found = stable_shuffle(values, key)
    assert sorted(found) == sorted(values) and found == stable_shuffle(sorted(values), key)
