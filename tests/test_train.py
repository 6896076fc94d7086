"The training loop across processes: a real SIGKILL, any number of readers, a launcher that starts too few."
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cxr_explain import train
from cxr_explain.train import ImageBatches, Recipe, TrainingError, as_input, batch_order, fit, masked_bce

SCRIPT = '''
import sys, time, torch
from cxr_explain.train import Recipe, fit, masked_bce

class Points:
    x = torch.linspace(-1, 1, 400).sin().reshape(100, 4)
    def __len__(self): return len(self.x)
    def batch(self, index, epoch):
        time.sleep(float(sys.argv[2]))
        x = self.x[index]
        return dict(x=x, y=(x > 0).float(), known=x > -2)

def loss(model, batch): return masked_bce(model(batch['x']), batch['y'], batch['known'])

torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(.2), torch.nn.Linear(16, 4))
found = fit(model, Points(), loss, Recipe(epochs=6, batch=8, save_s=0, ema=.9), sys.argv[1])
print(found.resumed)
'''


class Points:
    x = torch.linspace(-1, 1, 400).sin().reshape(100, 4)
    def __len__(self): return len(self.x)
    def batch(self, index, epoch):
        x = self.x[index]
        return dict(x=x, y=(x > 0).float(), known=x > -2)


def loss(model, batch): return masked_bce(model(batch['x']), batch['y'], batch['known'])


def net():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 4)


def start(tmp_path, folder, pause):
    script = tmp_path/'script.py'
    script.write_text(SCRIPT)
    return subprocess.Popen([sys.executable, script, folder, str(pause)], stdout=subprocess.PIPE, text=True)


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None and time.monotonic() < end, 'no checkpoint was written'
        time.sleep(.02)


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGKILL')
def test_a_training_killed_in_an_epoch_ends_with_the_same_bytes(tmp_path):
    through, killed = tmp_path/'through', tmp_path/'killed'
    assert start(tmp_path, through, 0).wait() == 0
    process = start(tmp_path, killed, .1)
    wait_for(killed/'checkpoint.safetensors', process)
    time.sleep(.75)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = start(tmp_path, killed, 0)
    resumed = int(again.communicate()[0])
    assert again.returncode == 0
    assert 0 < resumed < 72 and resumed % 12, f'step {resumed}: the kill should come inside an epoch'
    assert (through/'checkpoint.safetensors').read_bytes() == (killed/'checkpoint.safetensors').read_bytes()


def test_readers_change_nothing(tmp_path):
    a, b = net(), net()
    fit(a, Points(), loss, Recipe(epochs=2))
    fit(b, Points(), loss, Recipe(epochs=2, workers=2))
    assert torch.equal(a.weight, b.weight)


class Films: # what `ImageBatches` needs of a `ChestDataset`; rows in any order
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)
    rows = np.random.default_rng(1).permutation(50)[:40]
    y, known = (np.random.default_rng(2).random((40, 14)) < .4).astype(np.float32), np.ones((40, 14), bool)
    def __len__(self): return 40


def test_kept_films_give_the_same_batches_and_the_same_weights(monkeypatch):
    far, kept = ImageBatches(Films(), {}, 3), ImageBatches(Films(), {}, 3)
    kept.keep(torch.device('cpu'))
    for epoch, index in (0, np.array([5, 39, 0])), (1, np.arange(7, 20)):
        a, b = far.batch(index, epoch), kept.batch(index, epoch)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
    def pixels(model, b): return masked_bce(model(as_input(b).flatten(1)), b['y'], b['known'])
    def trained(data):
        torch.manual_seed(0); model = torch.nn.Linear(64, 14)
        fit(model, data, pixels, Recipe(epochs=2, batch=8)); return model.weight
    first = trained(ImageBatches(Films(), {}, 3))
    assert torch.equal(first, trained(kept))
    monkeypatch.setattr(train, '_keep', lambda data, device: data.keep(device) or True)
    assert torch.equal(first, trained(ImageBatches(Films(), {}, 3)))


def test_only_a_gpu_with_room_keeps_films(monkeypatch):
    cuda, data = torch.device('cuda'), ImageBatches(Films())
    assert not train._keep(data, torch.device('cpu')) and not train._keep(Points(), cuda)
    moved = []
    monkeypatch.setattr(ImageBatches, 'keep', lambda self, device: moved.append(device))
    for free, does in ((3*40*64 - 1, False), (3*40*64, True)):
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device, free=free: (free, free))
        assert train._keep(data, cuda) is does
    assert moved == [cuda]


def test_a_launcher_that_starts_too_few_processes_is_an_error(monkeypatch):
    fit(net(), Points(), loss, Recipe(epochs=1))  # one process is up
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(TrainingError, match='2 processes were asked for, 1 came up'):
        fit(net(), Points(), loss, Recipe(epochs=1))


def test_every_image_counts_once_an_epoch():
    order = batch_order(96, Recipe(batch=32, accumulate=2), 5)
    assert sorted(np.concatenate([i for step in order for i in step]).tolist()) == list(range(96))
    assert len(batch_order(10, Recipe(batch=32), 0)) == 1


def test_a_part_cut_checkpoint_is_not_the_truth(tmp_path):
    fit(net(), Points(), loss, Recipe(epochs=1, save_s=0), tmp_path)
    path = tmp_path/'checkpoint.safetensors'
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TrainingError, match='checkpoint.safetensors'):
        fit(net(), Points(), loss, Recipe(epochs=1, save_s=0), tmp_path)


def test_batch_norm_and_integers_come_back(tmp_path):
    def make():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))
    fit(make(), Points(), loss, Recipe(epochs=2, ema=.5, save_s=0), tmp_path)
    kept = load_file(tmp_path/'checkpoint.safetensors')
    assert kept['best/1.num_batches_tracked'].dtype == torch.int64


def test_a_gradient_that_is_no_number_stops_before_it_is_kept(tmp_path):
    def steep(model, batch): # the loss is finite, the gradient is not
        total, weight = loss(model, batch)
        return total + torch.sqrt((model.weight*0).abs()).sum(), weight
    with pytest.raises(TrainingError, match='step 0 .*gradient norm nan'):
        fit(net(), Points(), steep, Recipe(epochs=1, save_s=0), tmp_path)
    assert not list(tmp_path.iterdir())


def test_averaged_weights_are_kept_and_half_precision_leaves_no_trace():
    model = net()
    fit(model, Points(), loss, Recipe(epochs=2, ema=.5, precision='bf16'), score=lambda m: m.weight.detach().sum())
    assert 'forward' not in vars(model) and model.weight.dtype == torch.float32
    with pytest.raises(ValueError, match='fp16'): fit(net(), Points(), loss, Recipe(precision='fp16'))


RESUMED = '''
import os, sys, torch
from cxr_explain.train import Recipe, fit, masked_bce
torch.set_num_threads(1)

class Points:
    x = torch.linspace(-1, 1, 96).sin().reshape(24, 4)
    def __len__(self): return 24
    def batch(self, index, epoch): return dict(x=self.x[index], y=(self.x[index] > 0).float(), known=self.x[index] > -2)

left = [int(sys.argv[2])]
def score(model):
    left[0] -= 1
    if left[0] == 0: os._exit(9)
    return float(model.weight.sum())

def loss(model, batch): return masked_bce(model(batch['x']), batch['y'], batch['known'])
torch.manual_seed(0)
found = fit(torch.nn.Linear(4, 4), Points(), loss, Recipe(epochs=4, batch=8, save_s=0), sys.argv[1], score)
if torch.distributed.get_rank() == 0: print('resumed', found.resumed)
'''


def test_two_processes_resume_too(tmp_path):
    script = tmp_path/'script.py'
    script.write_text(RESUMED)
    def launch(folder, left):
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', script,
                   tmp_path/folder, left]
        return subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert launch('through', 0).returncode == 0
    assert launch('killed', 3).returncode != 0
    again = launch('killed', 0)
    assert again.returncode == 0, again.stderr[-2000:]
    assert 'resumed 9' in again.stdout
    a, b = ((tmp_path/f/'checkpoint.safetensors').read_bytes() for f in ('through', 'killed'))
    assert a == b
