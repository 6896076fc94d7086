"What crosses the cells of the cache and data chapters: processes, kills, damage, two runs with the same bytes."
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_explain import config, images
from cxr_explain.cache import Cache, ChestDataset, Sample, build_cache, collate, prior_rows, unpack_masks
from cxr_explain.config import Run, StaleArtefact, is_fresh, make_rng
from cxr_explain.data import (
    BrokenImages,
    ManifestError,
    build,
    eval_targets,
    file_sample,
    load_part,
    make_plan,
    phantom_sample,
    plan_disk,
    train_targets,
    validate,
)
from cxr_explain.findings import LABELS, label_columns
from cxr_explain.images import TruncatedImage, fit, read_fit, read_mask
from cxr_explain.leaks import LeakError
from cxr_explain.phantom import Phantom

PX = 32


def noise(item, px):
    rng = make_rng(item['k'], 'noise')
    fact = dict(label='Edema', box=[1.0, 2.0, 9.0, 9.0], mask=0)
    return Sample(rng.integers(0, 256, (px, px), np.uint8), {}, [fact], rng.integers(0, 2, (1, 2, px, px), np.uint8))


def slow_noise(item, px):
    time.sleep(.05)
    return noise(item, px)


def items(n): return [dict(image_id=f'n{k:03d}', k=k) for k in range(n)]


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(Path(folder).rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def phantoms():
    ph = Phantom(seed=0, px=64)
    return functools.partial(phantom_sample, phantom=ph), [dict(image_id=f'ph0_{4*k:07d}', i=4*k) for k in range(6)]


# ---- the cache

def test_number_of_processes_changes_no_byte(tmp_path, phantoms):
    make, plan = phantoms
    for name, workers in dict(one=1, two=2).items():
        build_cache(tmp_path/name, plan, make, 64, workers=workers, shard=2)
    assert digests(tmp_path/'one') == digests(tmp_path/'two')
    assert len(digests(tmp_path/'one')) == 2*2 + 3*3, 'index and ids of both; pixels, masks and record of three shards'


SCRIPT = """import sys
sys.path[:0] = [sys.argv[1]]
from test_data import PX, build_cache, items, slow_noise
if __name__ == "__main__": build_cache(sys.argv[2], items(int(sys.argv[3])), slow_noise, PX, workers=2, shard=4)
"""


def command(tmp_path, name, n=40):
    (tmp_path/'make.py').write_text(SCRIPT)
    return [sys.executable, str(tmp_path/'make.py'), str(Path(__file__).parent), str(tmp_path/name), str(n)]


def kill_after(process, pixels, shards):
    while process.poll() is None and len(list(pixels.glob('0*.json'))) < shards: time.sleep(.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_and_called_again_gives_the_same_bytes(tmp_path):
    pixels = tmp_path/'killed'/'pixels'
    kill_after(subprocess.Popen(command(tmp_path, 'killed')), pixels, 3)
    done = {p.name: p.stat().st_mtime_ns for p in pixels.glob('0*.json')}
    assert 3 <= len(done) < 10 and not (pixels/'index.json').exists()
    subprocess.run(command(tmp_path, 'killed'), check=True)
    again = {p.name: p.stat().st_mtime_ns for p in pixels.glob('0*.json')}
    assert all(again[name] == when for name, when in done.items()), 'finished shards are not made again'
    subprocess.run(command(tmp_path, 'whole'), check=True)
    assert digests(tmp_path/'killed') == digests(tmp_path/'whole')


@pytest.mark.parametrize('kind', ['pixels', 'masks'])
def test_half_written_files_of_killed_workers_are_removed(tmp_path, kind):
    build_cache(tmp_path, items(8), noise, PX, shard=4)
    whole = digests(tmp_path)
    left = ['.00001.npy.k2x_9a.npy', '.index.json.abcdefgh.json', '.ids.txt.x1.txt'] # names of `atomic_path`
    for name in left + ['.00000.json.a_b.json']*(kind == 'pixels'): (tmp_path/kind/name).write_bytes(b'half')
    (tmp_path/kind/'.note').touch() # not ours
    assert build_cache(tmp_path, items(8), noise, PX, shard=4)[1] == 0
    (tmp_path/kind/'.note').unlink()
    assert digests(tmp_path) == whole


def test_workers_end_with_their_parent(tmp_path):
    psutil = pytest.importorskip('psutil')
    process, pixels = subprocess.Popen(command(tmp_path, 'x', 4000)), tmp_path/'x'/'pixels'
    while process.poll() is None and not list(pixels.glob('0*.json')): time.sleep(.05)
    children = psutil.Process(process.pid).children(recursive=True)
    kill_after(process, pixels, 1)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert children and not alive


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'gone', 'record'])
def test_a_damaged_shard_is_made_again(tmp_path, damage):
    build_cache(tmp_path, items(8), noise, PX, shard=4)
    good = digests(tmp_path)
    path = tmp_path/'pixels'/('00001.json' if damage == 'record' else '00001.npy')
    content = path.read_bytes()
    if damage == 'gone': path.unlink()
    else: path.write_bytes(content[:-7] if damage != 'flipped' else content[:-1] + bytes([content[-1] ^ 1]))
    if damage == 'flipped':
        with pytest.raises(StaleArtefact, match='00001.npy'): Cache(tmp_path/'pixels').verify()
    assert build_cache(tmp_path, items(8), noise, PX, shard=4)[1] == 4
    assert digests(tmp_path) == good


@pytest.mark.parametrize('damage, message', [('cut', 'bytes, not'), ('gone', 'is gone')])
@pytest.mark.parametrize('kind', ['pixels', 'masks'])
def test_a_missing_or_cut_shard_is_noticed_when_the_cache_is_opened(tmp_path, kind, damage, message):
    build_cache(tmp_path, items(8), noise, PX, shard=4)
    path = tmp_path/kind/'00001.npy'
    if damage == 'gone': path.unlink()
    else: path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(StaleArtefact, match=f'00001.npy .*{message}'): Cache(tmp_path/kind)


def test_other_pixels_items_or_dials_reuse_nothing(tmp_path):
    assert build_cache(tmp_path, items(8), noise, PX, shard=4)[1] == 8
    assert build_cache(tmp_path, items(8), noise, PX, shard=4)[1] == 0
    assert build_cache(tmp_path, items(8), noise, PX, 'another dial', shard=4)[1] == 8
    assert build_cache(tmp_path, items(8), noise, 2*PX, 'another dial', shard=4)[1] == 8
    assert Cache(tmp_path/'pixels').shape == (8, 2*PX, 2*PX)
    assert build_cache(tmp_path, items(8)[::-1], noise, 2*PX, 'another dial', shard=4)[1] == 8
    assert Cache(tmp_path/'pixels').ids()[0] == 'n007'


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = []
    for n in (256, 1024):
        tracemalloc.start()
        build_cache(tmp_path/str(n), items(n), noise, 64, shard=64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5*peaks[0], f'{peaks} bytes for 256 and 1,024 images'


def test_a_mistake_in_the_code_is_not_a_broken_image(tmp_path):
    def wrong(item, px): raise KeyError('no such key')
    with pytest.raises(KeyError): build_cache(tmp_path, items(2), wrong, PX)


def test_an_empty_shard_and_an_empty_cache(tmp_path):
    def never(item, px): raise TruncatedImage('cut')
    records, made = build_cache(tmp_path, items(5), never, PX, shard=2)
    assert made == 0 and sum(len(r['failures']) for r in records) == 5
    assert len(Cache(tmp_path/'pixels')) == 0
    with pytest.raises(IndexError, match='row 0 of a cache of 0'): Cache(tmp_path/'pixels')[0]


# ---- the dataset

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache')
    build_cache(folder, items(12), noise, PX, shard=5)
    frame = pd.DataFrame(dict(image_id=[f'n{k:03d}' for k in range(12)], row=np.arange(12), view='PA',
                              study_id=[f's{k}' for k in range(12)]))
    frame['prior_study_id'] = [None]*6 + frame.study_id[:6].tolist()
    facts = pd.DataFrame(dict(image_id=frame.image_id, label='Edema', box=[[1, 2, 9, 9]]*12, mask_row=np.arange(12)))
    y, known = np.zeros((12, 14), np.float32), np.ones((12, 14), bool)
    return ChestDataset(frame, Cache(folder/'pixels'), y, known, facts=facts, masks=Cache(folder/'masks'),
                        prior=prior_rows(frame), augment={})


def batches(dataset, workers, **more):
    from torch.utils.data import DataLoader
    more |= dict(multiprocessing_context='spawn') if workers else {}
    return DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=collate, **more)


def test_number_of_loader_workers_changes_nothing_over_two_epochs(dataset):
    seen = {}
    for workers in (0, 2):
        loader = batches(dataset, workers, persistent_workers=workers > 0)
        for epoch in (0, 1):
            dataset.set_epoch(epoch)
            for b in loader: seen.setdefault((workers, epoch), []).append(b)
    for epoch in (0, 1):
        for a, b in zip(seen[0, epoch], seen[2, epoch], strict=True):
            assert all((a[k] == b[k]).all() for k in ('image', 'prior', 'masks', 'y', 'index'))
            assert all((x == y).all() for x, y in zip(a['boxes'], b['boxes'], strict=True))
    assert (seen[0, 0][0]['image'] != seen[0, 1][0]['image']).any(), 'another epoch, another draw'


def test_boxes_and_masks_move_with_the_image(dataset):
    still = ChestDataset.__new__(ChestDataset)
    still.__dict__ |= dataset.__dict__ | dict(augment=None)
    a, b = still[3], dataset[3]
    assert (a['masks'][:, 5].numpy() == unpack_masks(dataset.masks[3], PX).astype(bool)).all()
    assert (a['boxes'] != b['boxes']).any() and (a['masks'] != b['masks']).any()


def test_prior_is_of_the_same_view_when_there_is_one():
    frame = pd.DataFrame(dict(image_id=list('abcd'), row=[7, 5, 9, 3], study_id=['s1', 's1', 's2', 's2'],
                              view=['PA', 'LATERAL', 'LATERAL', 'AP'], prior_study_id=[None, None, 's1', 's1']))
    assert prior_rows(frame).tolist() == [-1, -1, 5, 7]


# ---- the chapter

@pytest.fixture
def tiny(monkeypatch):
    sizes = dict(px=32, n_train=6, n_select=3, n_calibrate=3, n_test=3, min_positives=0)
    profile = config.get_profile('smoke', **sizes)
    monkeypatch.setitem(config.PROFILES, 'smoke', profile)
    return profile


def build_in(folder, monkeypatch, workers, profile, **more):
    monkeypatch.setitem(config.PROFILES, 'smoke', config.dataclasses.replace(profile, workers=workers, **more))
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(folder))
    run = Run('data')
    return run, build(run)


def test_two_runs_have_the_same_bytes(tmp_path, monkeypatch, tiny):
    for name, workers in dict(a=1, b=2).items(): build_in(tmp_path/name, monkeypatch, workers, tiny)
    a, b = digests(tmp_path/'a'), digests(tmp_path/'b')
    assert a == b and {'smoke/manifest.parquet', 'smoke/facts.parquet', 'smoke/pixels/index.json'} <= set(a)


def test_the_pixels_of_a_row_are_those_of_its_image(tmp_path, monkeypatch, tiny):
    run, (manifest, _, _) = build_in(tmp_path, monkeypatch, 1, tiny)
    pixels = Cache(run.path('pixels'))
    assert [pixels.ids()[r] for r in manifest.row] == manifest.image_id.tolist()
    ph, last = Phantom(seed=0, px=32), manifest.iloc[-1]
    assert (phantom_sample(dict(i=int(last.image_id[4:])), 32, ph).img == pixels[last['row']]).all()
    facts = run.load('facts.parquet')
    own = facts[facts.mask_row.notna()]
    assert [Cache(run.path('masks')).ids()[r] for r in own.mask_row] == own.image_id.tolist()
    ds = load_part(run, 'train', boxes=True, prior=True)
    assert len(ds) == (manifest.part == 'train').sum()


def folder_of_films(root, n=8, broken=0, copy=None, seed=0):
    (root/'films').mkdir(parents=True)
    rows = []
    for k in range(n):
        img = make_rng(seed + (k if k != copy else 0), 'film').integers(0, 256, (40, 60), np.uint8)
        Image.fromarray(img).resize((240, 160), Image.BICUBIC).save(root/'films'/f'{k}.png')
        if k < broken: (root/'films'/f'{k}.png').write_bytes((root/'films'/f'{k}.png').read_bytes()[:300])
        part = 'train' if k < n//2 else 'test'
        box = json.dumps([dict(label='Edema', x=60, y=40, w=30, h=20)]) if k == n - 1 else ''
        rows.append(dict(path=f'films/{k}.png', patient_id=f'p{k}', part=part, view='PA', licence='CC0', boxes=box,
                         Edema=k % 2, **{'Lung Opacity': 0}))
    pd.DataFrame(rows).to_csv(root/'metadata.csv', index=False)


def build_real(tmp_path, monkeypatch, **more):
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path/'runs'))
    monkeypatch.setitem(config.PROFILES, 'real', config.get_profile('real', px=64, workers=1))
    run = Run('data', 'real', data_dir=str(tmp_path/'data'))
    return run, build(run, **more)


def test_a_folder_of_films_becomes_a_run(tmp_path, monkeypatch):
    folder_of_films(tmp_path/'data'/'mine')
    run, (manifest, leaks, passed) = build_real(tmp_path, monkeypatch)
    assert len(manifest) == 8 and not any(leaks.values()) and passed['broken'] == 0
    assert {'train', 'test'} <= set(manifest.part) and (manifest.part[4:] == 'test').all()
    fact = run.load('facts.parquet').iloc[0]
    assert np.allclose(fact.box, [16, 40*43/160 + 10, 24, 60*43/160 + 10]), '240 x 160 becomes 64 x 43, below 10 rows'
    y, known = eval_targets(manifest)
    assert y[manifest.label_edema == 1, LABELS.index('Lung Opacity')].all(), 'its child is positive'
    assert not known[:, LABELS.index('Fracture')].any(), 'never read, never known'


def test_a_broken_film_is_reported_and_never_black(tmp_path, monkeypatch):
    folder_of_films(tmp_path/'data'/'mine', n=120, broken=1)
    run, (manifest, _, passed) = build_real(tmp_path, monkeypatch)
    assert len(manifest) == 119 and passed['broken'] == 1
    assert (Cache(run.path('pixels'))[np.arange(119)].max((1, 2)) > 0).all()
    bad = run.load('failures.parquet')
    assert bad.path.tolist() == ['films/0.png'] and bad.error[0] in ('TruncatedImage', 'CorruptImage')


def test_too_many_broken_films_stop_the_run(tmp_path, monkeypatch):
    folder_of_films(tmp_path/'data'/'mine', broken=2)
    with pytest.raises(BrokenImages, match='2 of 8 images cannot be read'): build_real(tmp_path, monkeypatch)
    assert not list((tmp_path/'runs').rglob('manifest.parquet')), 'nothing is saved'


def test_a_leak_stops_the_run_and_an_exclusion_mends_it(tmp_path, monkeypatch):
    folder_of_films(tmp_path/'data'/'mine', copy=6)
    with pytest.raises(LeakError, match='pixels: 1 across parts') as e: build_real(tmp_path, monkeypatch)
    assert not list((tmp_path/'runs').rglob('manifest.parquet')), 'nothing is saved'
    pair = e.value.leaks[['a', 'b']].iloc[0].tolist()
    (tmp_path/'data'/'exclude.txt').write_text(pair[0] + '\n')
    _, (manifest, _, _) = build_real(tmp_path, monkeypatch)
    assert len(manifest) == 7 and pair[0] not in set(manifest.image_id)


# ---- what changes a run on disk

def touch_later(path, seconds=5):
    then = path.stat().st_mtime_ns + seconds*10**9
    os.utime(path, ns=(then, then))


def add_masks(root, n=8):
    table = pd.read_csv(root/'metadata.csv')
    (root/'masks').mkdir()
    for k in range(n):
        mask = np.zeros((160, 240), np.uint8); mask[40:80, 60:120] = 255
        Image.fromarray(mask).save(root/'masks'/f'{k}.png')
    table.assign(lung_mask_path=[f'masks/{k}.png' for k in range(n)]).to_csv(root/'metadata.csv', index=False)


@pytest.mark.parametrize('name', ['films/3.png', 'masks/3.png'])
def test_a_replaced_file_of_the_same_size_is_read_again(tmp_path, monkeypatch, name):
    folder_of_films(tmp_path/'data'/'mine'); add_masks(tmp_path/'data'/'mine')
    build_real(tmp_path, monkeypatch)
    run, _ = build_real(tmp_path, monkeypatch)
    assert not run.times, 'nothing is made again'
    touch_later(tmp_path/'data'/'mine'/name)
    run, _ = build_real(tmp_path, monkeypatch)
    assert run.times, 'its shard is'


@pytest.mark.parametrize('change', ['exclude', 'film', 'shard'])
def test_a_changed_data_folder_or_a_cut_shard_makes_the_chapter_stale(tmp_path, monkeypatch, change):
    folder_of_films(tmp_path/'data'/'mine')
    run, _ = build_real(tmp_path, monkeypatch)
    run.finish()
    def fresh(): return is_fresh('data', run.profile, run.dir, tmp_path/'data')
    assert fresh()
    if change == 'exclude': (tmp_path/'data'/'exclude.txt').write_text('mine_films_3')
    elif change == 'film': touch_later(tmp_path/'data'/'mine'/'films'/'3.png')
    else:
        shard = run.path('pixels')/'00000.npy'
        shard.write_bytes(shard.read_bytes()[:-9])
        with pytest.raises(StaleArtefact, match='00000.npy is missing or cut'): run.check('pixels')
    assert not fresh()


@pytest.mark.parametrize('content', [b'', b'not a picture', b'\x89PNG\r\n\x1a\n cut', None])
def test_a_broken_mask_costs_its_image_and_not_the_run(tmp_path, monkeypatch, content):
    folder_of_films(tmp_path/'data'/'mine', n=120); add_masks(tmp_path/'data'/'mine', n=120)
    path = tmp_path/'data'/'mine'/'masks'/'7.png'
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    run, (manifest, _, passed) = build_real(tmp_path, monkeypatch)
    assert len(manifest) == 119 and passed['broken'] == 1
    bad = run.load('failures.parquet')
    assert bad.path.tolist() == ['films/7.png'] and bad.error.tolist() == ['BrokenMask']


def test_masks_of_zeros_and_ones_are_masks(tmp_path):
    p = fit(np.random.default_rng(0).random((40, 60), np.float32), 32)[1]
    mask = np.zeros((40, 60), np.uint8); mask[10:30, 10:50] = 255
    for name, m in dict(a=mask, b=mask//255).items(): Image.fromarray(m).save(tmp_path/f'{name}.png')
    a, b = (read_mask(tmp_path/f'{name}.png', p) for name in 'ab')
    assert a.any() and (a == b).all()


def test_preprocessing_reaches_the_cache(tmp_path, monkeypatch, tiny):
    folder_of_films(tmp_path/'data'/'mine')
    run, _ = build_real(tmp_path, monkeypatch)
    plain = Cache(run.path('pixels'))[np.arange(8)]
    _, (manifest, _, _) = build_real(tmp_path, monkeypatch, preprocess=('clahe',))
    pixels = Cache(run.path('pixels'))
    wanted = images.to_uint8(read_fit(tmp_path/'data'/'mine'/'films'/'0.png', 64, ('clahe',))[0])
    at = manifest.row[manifest.path == 'films/0.png'].item()
    assert (pixels[at] == wanted).all() and (pixels[at] != plain[at]).any()
    with pytest.raises(ValueError, match='sharpen'): build_real(tmp_path, monkeypatch, preprocess=('sharpen',))
    run = Run('data')
    plain, steps = make_plan(run), make_plan(run, ('equalize',))
    assert plain.key != steps.key
    a, b = (plan.make(plan.items[0], 32).img for plan in (plain, steps))
    assert (images.to_uint8(images.equalize(a/np.float32(255))) == b).all()


def test_the_first_patients_of_each_source_are_nested_and_keep_their_parts(tmp_path, monkeypatch):
    folder_of_films(tmp_path/'data'/'mine', n=120); folder_of_films(tmp_path/'data'/'yours', n=40, seed=1000)
    table = pd.read_csv(tmp_path/'data'/'mine'/'metadata.csv')
    table.assign(patient_id=[f'p{k//2}' for k in range(120)]).to_csv(tmp_path/'data'/'mine'/'metadata.csv', index=False)
    plans = {n: plan_disk(tmp_path/'data', patients=n) for n in (0, 10, 25)}
    rows = {n: plan.rows([]) for n, plan in plans.items()}
    assert rows[10].groupby('source').patient_id.nunique().to_dict() == dict(mine=10, yours=10)
    assert len(rows[0]) == 160 and rows[10].groupby('source').size().to_dict() == dict(mine=20, yours=10)
    assert set(rows[10].image_id) < set(rows[25].image_id) < set(rows[0].image_id)
    parts = rows[0].set_index('image_id').part
    assert all(parts[r.image_id].tolist() == r.part.tolist() for r in (rows[10], rows[25]))
    (tmp_path/'data'/'patients.txt').write_text('10\n')
    assert plan_disk(tmp_path/'data').rows([]).equals(rows[10]) and len(plans[10].items) == 30
    _, (manifest, _, passed) = build_real(tmp_path, monkeypatch)
    assert len(manifest) == 30 and passed['patients_per_source'] == 10
    (tmp_path/'data'/'patients.txt').write_text('ten')
    with pytest.raises(ValueError, match=r"patients.txt says 'ten'"): plan_disk(tmp_path/'data')


def test_rows_outside_an_official_split_are_counted_and_never_tested_on(tmp_path, monkeypatch):
    folder_of_films(tmp_path/'data'/'mine', n=120)
    table = pd.read_csv(tmp_path/'data'/'mine'/'metadata.csv')
    table.loc[range(20, 60), 'part'] = None
    table.loc[20, 'patient_id'] = 'p100'  # a film of a test patient that the split forgot
    table.to_csv(tmp_path/'data'/'mine'/'metadata.csv', index=False)
    with pytest.warns(UserWarning, match='mine: 40 of 120 images have no official part'):
        _, (manifest, _, passed) = build_real(tmp_path, monkeypatch)
    assert passed['no_official_part'] == 40
    part = manifest.set_index('path').part
    assert part['films/20.png'] == 'test'
    assert set(part[[f'films/{k}.png' for k in range(21, 60) if k != 20]]) <= {'train', 'select', 'calibrate'}


ORGANS = ('heart', 'lung', 'rib', 'spine')
TEXT = ' '.join(f'The {w} of this made-up person shows a sign that nobody else has.' for w in ORGANS)


def reports_only(root, texts):
    root.mkdir(parents=True)
    rows = [dict(id=f'CXR{k}', indication='', findings=t, impression='') for k, t in enumerate(texts)]
    (root/'openi_reports.jsonl').write_text('\n'.join(json.dumps(r) for r in rows) + '\n')


def some_texts(n): return [f'There is an opacity of kind {chr(97 + k%26)}{chr(97 + k//26)} here.' for k in range(n)]


def test_a_folder_of_reports_alone_becomes_a_run(tmp_path, monkeypatch):
    reports_only(tmp_path/'data'/'openi', some_texts(60))
    run, (manifest, leaks, passed) = build_real(tmp_path, monkeypatch)
    assert len(manifest) == 0 and not any(leaks.values()) and len(run.load('reports.parquet')) == 60
    assert len(Cache(run.path('pixels'))) == 0 and len(run.load('facts.parquet')) == 0


def test_equal_reports_without_patients_share_a_part(tmp_path, monkeypatch):
    reports_only(tmp_path/'data'/'openi', some_texts(300) + [TEXT]*12)
    run, _ = build_real(tmp_path, monkeypatch)
    texts = run.load('reports.parquet')
    same = texts[texts.findings == TEXT]
    assert same.part.nunique() == 1 and same.split_group.nunique() == 1


def test_a_report_that_an_image_of_another_part_has_stops_the_run(tmp_path, monkeypatch):
    folder_of_films(tmp_path/'data'/'mine')
    table = pd.read_csv(tmp_path/'data'/'mine'/'metadata.csv')
    reports_only(tmp_path/'data'/'openi', some_texts(300) + [TEXT])
    texts = [None]*8
    held = plan_disk(tmp_path/'data').reports.part.iloc[-1]
    texts[0 if held != 'train' else 7] = TEXT
    table.assign(findings=texts).to_csv(tmp_path/'data'/'mine'/'metadata.csv', index=False)
    with pytest.raises(LeakError, match='report: 1 across parts'): build_real(tmp_path, monkeypatch)


def test_a_mask_of_another_size_is_refused(tmp_path):
    Image.fromarray(make_rng(0, 'm').integers(0, 256, (40, 60), np.uint8)).save(tmp_path/'a.png')
    Image.fromarray(np.zeros((40, 61), np.uint8)).save(tmp_path/'m.png')
    item = dict(source='s', path='a.png', facts=[dict(box=None, mask_path='m.png')])
    with pytest.raises(ValueError, match=r'\(40, 61\)'): file_sample(item, 32, dict(s=tmp_path))


# ---- labels, on every combination

@pytest.mark.parametrize('uncertain', ['zeros', 'ones', 'ignore', 'soft'])
@pytest.mark.parametrize('blank', ['negative', 'ignore'])
def test_no_policy_makes_a_parent_of_a_positive_child_negative(uncertain, blank):
    rng = np.random.default_rng(0)
    raw = rng.choice([1, 0, -1, np.nan], (500, 14)).astype(np.float32)
    frame = pd.DataFrame(raw, columns=label_columns('label')).join(
        pd.DataFrame(rng.random((500, 14)) < .8, columns=label_columns('annotated')))
    y, known = train_targets(frame, uncertain, blank)
    child, parent = LABELS.index('Pneumonia'), LABELS.index('Lung Opacity')
    assert not ((y[:, child] == 1) & known[:, child] & (y[:, parent] != 1) & known[:, parent]).any()
    assert not (known & ~frame[label_columns('annotated')].to_numpy()).any(), 'never read, never known'
    assert np.isfinite(y).all() and y.min() == 0 and y.max() == 1


def test_schema_names_the_column_of_every_type_error():
    from cxr_explain.data import MANIFEST_COLUMNS
    from cxr_explain.rows import as_rows
    frame = as_rows(pd.DataFrame(dict(image_id=['a'], licence='CC0', part='train')), 'toy')
    frame.insert(list(MANIFEST_COLUMNS).index('row'), 'row', np.int64([0]))
    validate(frame)
    for name, value in dict(age='old', row='0', annotated_edema='yes', truth_edema=-1.0, fold=7).items():
        with pytest.raises(ManifestError, match=name): validate(frame.assign(**{name: value}))


def test_a_parent_is_uncertain_where_only_its_child_is():
    frame = pd.DataFrame(np.full((1, 14), np.nan, np.float32), columns=label_columns('label')).join(
        pd.DataFrame(np.ones((1, 14), bool), columns=label_columns('annotated')))
    frame['label_pneumonia'] = np.float32(-1)
    known = dict(zip(LABELS, eval_targets(frame)[1][0]))
    assert not known['Pneumonia'] and not known['Consolidation'] and not known['Lung Opacity'] and known['Edema']
