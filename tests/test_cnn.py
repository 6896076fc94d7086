"Baselines and CNN on fabricated films whose labels are bright squares: what crosses chapters, processes and bad input."
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from cxr_explain import baselines, cnn
from cxr_explain.baselines import frontal_rows, load_predictions, save_predictions, score_targets
from cxr_explain.cache import Sample, build_cache
from cxr_explain.config import MissingArtefact, Run, make_rng
from cxr_explain.findings import LABELS, label_columns
from cxr_explain.train import Recipe, load_model

ARCHS = 'resnet18', 'efficientnet_b0', 'densenet121'
PARTS = dict(train=60, select=30, calibrate=40, test=40)
TINY = cnn.Settings(width=8, recipe=Recipe(epochs=2, batch=20, lr=1e-2))


def film(item, px): # a label is a bright square at its own place
    img = make_rng(item['k'], 'film').integers(0, 90, (px, px), np.uint8)
    for j in np.flatnonzero(item['y']):
        a, b = divmod(int(j), 4)
        img[16*a:16*a + 12, 16*b:16*b + 12] += 120
    return Sample(img)


def make_rows():
    n, rng = sum(PARTS.values()), make_rng(0, 'rows')
    y = (rng.random((n, len(LABELS))) < .4) + 0.
    names = [f'i{k:03}' for k in range(n)]
    patients = [f'p{k//2:03}' for k in range(n)]
    rows = pd.DataFrame(dict(image_id=names, study_id=names, patient_id=patients, split_group=patients,
                             part=np.repeat(list(PARTS), list(PARTS.values())), row=np.arange(n), view='PA', sex='F',
                             age=rng.integers(20, 90, n).astype(float), weight=rng.uniform(.5, 2, n)))
    rows['fold'] = pd.array(np.where(rows.part == 'train', np.arange(n)//2 % 5, -1), 'Int32')
    rows.loc[rows.fold == -1, 'fold'] = pd.NA
    for prefix, values in (('label', y), ('annotated', y > -1), ('truth', y*np.nan), ('visible', y*np.nan)):
        rows[label_columns(prefix)] = values
    return rows, y


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path))
    run = Run('cnn', 'smoke')
    rows, y = make_rows()
    build_cache(run.dir, [dict(image_id=i, k=k, y=y[k]) for k, i in enumerate(rows.image_id)], film, 64)
    run.seal('pixels')
    run.save('manifest.parquet', rows)
    return run


def shifted(net):
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.uniform_(-.1, .1); m.running_var.uniform_(.5, 2)
    return net.eval()


@pytest.mark.parametrize('arch', ARCHS)
def test_colour_weights_are_summed_and_nothing_else_changes(arch, tmp_path):
    torch.manual_seed(0)
    colour, x = shifted(timm.create_model(arch, num_classes=7)), torch.rand(2, 1, 64, 64)
    save_file({k: v.contiguous() for k, v in colour.state_dict().items()}, tmp_path/'w.safetensors')
    net = cnn.load_weights(cnn.build_cnn(dict(arch=arch)), str(tmp_path/'w.safetensors')).eval()
    with torch.inference_mode():
        assert net(x).shape == (2, 14)
        a, b = net.forward_features(x), colour.forward_features(x.expand(-1, 3, -1, -1))
    assert torch.allclose(a, b, atol=1e-3*b.abs().max().item())


def test_own_weights_come_back_whole_and_torch_files_are_read(tmp_path):
    net = shifted(cnn.build_cnn(dict(arch='resnet18', width=16)))
    torch.save(net.state_dict(), tmp_path/'w.pth')
    back = cnn.load_weights(cnn.build_cnn(dict(arch='resnet18', width=16)), str(tmp_path/'w.pth'))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), back.state_dict().values()))


def test_weights_that_cannot_be_had_are_errors(tmp_path):
    net = cnn.build_cnn(dict(arch='resnet18', width=16))
    for name in (str(tmp_path/'none.pth'), 'models/none', 'resnet18.no_such_weights'):
        with pytest.raises(cnn.MissingWeights, match="choose weights='scratch'"): cnn.load_weights(net, name)
    for name in ('half.safetensors', 'half.pth'):
        (tmp_path/name).write_bytes(b'12345678901234567890')
        with pytest.raises(cnn.MissingWeights, match='is damaged'): cnn.load_weights(net, str(tmp_path/name))
    state = net.state_dict()
    save_file({k: v for k, v in state.items() if k != 'layer2.0.conv1.weight'}, tmp_path/'hole.safetensors')
    with pytest.raises(ValueError, match='1 tensors, such as layer2.0.conv1.weight'):
        cnn.load_weights(net, str(tmp_path/'hole.safetensors'))
    with pytest.raises(ValueError, match='is not a network of timm'): cnn.build_cnn(dict(arch='resnet'))


@pytest.mark.parametrize('arch', ARCHS)
def test_maps_add_up_and_are_grad_cam(arch):
    torch.manual_seed(0)
    net, x = shifted(cnn.build_cnn(dict(arch=arch))), torch.randn(2, 1, 96, 96)
    with torch.inference_mode(): z, maps = cnn.class_maps(net, x)
    with torch.inference_mode(): assert torch.allclose(z, net(x), atol=1e-4*z.abs().max().item() + 1e-5)
    scale = maps.abs().max()
    for k in (0, 5, 13): assert ((cnn.grad_cam(net, x, k) - maps[:, k]).abs().max() < 1e-5*scale).item()


def test_captum_gives_the_same_maps():
    net, x = shifted(cnn.build_cnn(dict(arch='resnet18', width=16))), torch.randn(2, 1, 64, 64)
    with torch.inference_mode(): _, maps = cnn.class_maps(net, x)
    assert ((cnn.library_cams(net, x, net.layer4) - maps).abs().max() < 1e-5*maps.abs().max()).item()


def test_policy_and_balance_change_what_is_learnt(run):
    rows = frontal_rows(run)
    rows.loc[:20, 'label_edema'] = -1
    j, found = LABELS.index('Edema'), {}
    for policy in ('zeros', 'ones', 'ignore', 'soft'):
        b = cnn.image_batches(run, rows, dataclasses.replace(TINY, uncertain=policy))
        found[policy] = b.y[0, j].item(), b.known[0, j].item()
    assert found == dict(zeros=(0, True), ones=(1, True), ignore=(0, False), soft=(pytest.approx(.7), True))
    y = np.r_[np.ones(1), np.zeros(9)][:, None].repeat(14, 1)
    assert torch.allclose(cnn.positive_weights(y, y > -1, .5), torch.full((14,), 3.))


def test_main_writes_every_part_once_and_twice_the_same(run):
    rows = frontal_rows(run)
    baselines.main(run)
    cnn.main(run, TINY)
    path = run.path('predictions/cnn.parquet')
    table, first = pd.read_parquet(path), path.read_bytes()
    assert table.image_id.tolist() == rows.image_id.tolist() and table.part.tolist() == rows.part.tolist()
    assert list(table)[2:] == label_columns('logit') + label_columns('p')
    net = load_model(run, 'cnn', cnn.build_cnn)
    assert np.array_equal(cnn.predict_rows(run, net, rows), table[label_columns('logit')].to_numpy('float32'))
    names = {r['name'] for r in run.records}
    assert names >= {'auroc_macro', 'auroc', 'ap_macro', 'ece', 'brier', 'log_loss', 'f1_macro', 'sensitivity',
                     'specificity', 'auroc_difference', 'observer_gap_closed', 'gate', 'parameters'}
    for r in run.records:
        if r['name'] == 'observer_gap_closed': assert r['value'] is None and 'phantoms only' in r['reason']
    assert json.loads((run.dir/'predictions/cnn.parquet.meta.json').read_text())['weights'] == 'scratch'
    for f in run.path('models/cnn').iterdir(): f.unlink()
    cnn.main(run, TINY)
    assert path.read_bytes() == first


def test_a_network_learns_bright_squares(run):
    rows = frontal_rows(run)
    s = dataclasses.replace(TINY, width=16, recipe=Recipe(epochs=25, batch=20, lr=1e-2))
    net, _ = cnn.train_cnn(run, rows[rows.part != 'test'], s)
    own = rows[rows.part == 'test']
    assert baselines.macro(baselines.auroc(score_targets(own), cnn.predict_rows(run, net, own))).value[0] > .8


def test_decisions_do_not_see_the_test_part(run):
    rows = frontal_rows(run)
    z = make_rng(1, 'z').normal(size=(len(rows), 14))
    save_predictions(run, 'a', rows, z)
    kept = run.path('predictions/a.json').read_bytes()
    other = rows.copy()
    at = other.part.isin(['train', 'select', 'test'])
    other.loc[at, label_columns('label')] = 1 - other.loc[at, label_columns('label')]
    save_predictions(run, 'a', other, z)
    assert run.path('predictions/a.json').read_bytes() == kept
    with pytest.raises(ValueError, match='14 finite logits'): save_predictions(run, 'a', rows, z[:, :3])
    with pytest.raises(MissingArtefact, match='make it with'): load_predictions(run, 'nobody')


def test_baselines_stand_what_is_missing(run):
    rows = frontal_rows(run).assign(age=np.nan, sex=None)
    x = baselines.demographic_features(rows)
    assert np.isfinite(x).all() and np.isfinite(baselines.probe_logits(x, rows)).all()
    rows[label_columns('label')[3]] = 0.
    z = baselines.probe_logits(x, rows)
    assert np.isfinite(z).all() and np.ptp(z[:, 3]) == 0


def test_folds_keep_patients_apart(run):
    rows = frontal_rows(run)
    rows = rows[rows.part.isin(['train', 'test'])].reset_index(drop=True)
    seen = []
    def fit_one(train):
        def say(own):
            assert not set(train.patient_id) & set(own.patient_id)
            seen.append(len(own))
            return np.ones((len(own), 14))
        return say
    for repeat in (0, 1):
        fold = cnn.draw_real_folds(rows, repeat)
        z = cnn.cross_logits(rows, fold, fit_one)
        assert np.allclose(z, 1) and ((fold < 0) == (rows.part == 'test')).all()
    assert len(seen) == 20


def test_the_others_write_nothing(run, monkeypatch):
    baselines.main(run)
    monkeypatch.setenv('RANK', '1')
    cnn.main(run, TINY)
    assert not run.path('predictions/cnn.parquet').exists() and not run.path('models/cnn/index.json').exists()


def test_two_processes_under_torchrun(run, tmp_path):
    baselines.main(run)
    script = tmp_path/'script.py'
    script.write_text(
        'import torch\ntorch.set_num_threads(1)\nfrom cxr_explain import cnn\nfrom cxr_explain.config import Run\n'
        'from cxr_explain.train import Recipe\nrun = Run("cnn", "smoke")\n'
        'found = cnn.main(run, cnn.Settings(width=8, recipe=Recipe(epochs=2, batch=20, lr=1e-2)))\n'
        'assert torch.distributed.get_world_size() == 2 and len(found.history) == 2\n')
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(script)]
    done = subprocess.run(torchrun, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(load_predictions(run, 'cnn').rows) == sum(PARTS.values())
