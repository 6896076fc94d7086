"Two towers across processes and across the library's classes: gathered negatives, pretrained folders, damaged files."
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cxr_explain import clip as clips
from cxr_explain import towers
from cxr_explain.config import MissingArtefact, Run, StaleArtefact

SCRIPT = '''
import os, sys, torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from cxr_explain import clip as clips
from cxr_explain.towers import build_clip, clip_config, train_tokenizer
from cxr_explain.train import Recipe, Trainer, as_input

PAIRS = 8
words = ['left effusion', 'right effusion', 'no effusion', 'large heart', 'edema', 'nodule', 'clear lungs', 'fracture']
tok = train_tokenizer(words)

class Pairs:
    image = torch.randint(0, 255, (PAIRS, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = (torch.rand(PAIRS, 14, generator=torch.Generator().manual_seed(1)) < .4).float()
    def __len__(self): return PAIRS
    def batch(self, i, epoch):
        return dict(image=self.image[i], ids=ids[i], y=self.y[i], known=torch.ones(len(i), 14, dtype=torch.bool))

def blind(x): # what other processes have, without their gradients
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)

found = {}
for kind in (*clips.LOSSES, 'blind'):
    torch.manual_seed(0)
    bias = -10. if kind == 'siglip' else None
    clip = build_clip(clip_config(tok, 32, dict(arch='test_vit'), 16, 16, bias=bias, width=32, layers=1), tok)
    ids = clip.tokens(words)
    name = 'info_nce' if kind == 'blind' else kind
    def loss(model, b): return clips.pair_loss(name, model(as_input(b), b.pop('ids')), b)
    t = Trainer(clip, Pairs(), loss, Recipe(batch=PAIRS, epochs=1))
    if kind == 'blind' and t.acc.num_processes > 1: clips.gather = blind
    sums = t._update([Pairs().batch(i, 0) for i in t.order(0)[0]])
    found |= {f'{kind}/{n}': p.grad*(t.acc.num_processes/sums[1]).float() for n, p in clip.named_parameters()}
    found[f'{kind}/loss'] = (sums[0]/sums[1]).float()
assert t.acc.num_processes == int(sys.argv[2]), t.acc.num_processes
if t.acc.is_main_process: save_file({k: v.clone().contiguous() for k, v in found.items()}, sys.argv[1])
'''


@pytest.fixture(scope='module')
def gradients(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    script = folder/'script.py'
    script.write_text(SCRIPT)
    many = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    for n, how in ((1, []), (2, many)):
        command = [sys.executable, *how, str(script), str(folder/f'{n}.safetensors'), str(n)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(folder/f'{n}.safetensors') for n in (1, 2)]


def apart(gradients, kind): # relative distance of all gradients, difference of the loss
    one, two = ({k: v for k, v in g.items() if k.startswith(f'{kind}/')} for g in gradients)
    loss = (one.pop(f'{kind}/loss') - two.pop(f'{kind}/loss')).abs().item()
    a, b = (torch.cat([v.flatten() for _, v in sorted(g.items())]) for g in (one, two))
    return ((a - b).norm()/a.norm()).item(), loss


@pytest.mark.parametrize('kind', clips.LOSSES)
def test_two_processes_have_the_gradient_of_one(gradients, kind):
    gap, loss = apart(gradients, kind)
    assert gap < 1e-5 and loss < 1e-5


def test_without_their_gradients_a_part_is_lost(gradients):
    gap, loss = apart(gradients, 'blind')
    assert gap > .1 and loss < 1e-5  # the loss looks right, which is why nobody notices


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path))
    return Run('clip', 'smoke')


def small():
    torch.manual_seed(0)
    tok = towers.train_tokenizer(['no pleural effusion', 'large heart'])
    config = towers.clip_config(tok, 64, dict(arch='resnet18', width=8), 16, 16, width=32, layers=1)
    return towers.build_clip(config, tok)


def test_an_embedding_file_that_was_touched_is_refused(run):
    emb = np.eye(3, dtype=np.float32)
    towers.save_embeddings(run, 'm', 'text', list('abc'), emb)
    ids, back = towers.load_embeddings(run, 'm', 'text')
    assert ids == list('abc') and np.array_equal(back, emb)
    run.path('embeddings/m.text.ids.json').write_text('["a", "b"]')
    with pytest.raises(StaleArtefact, match='was changed'): towers.load_embeddings(run, 'm', 'text')
    with pytest.raises(MissingArtefact, match='m.image'): towers.load_embeddings(run, 'm', 'image')
    for bad in (emb*np.nan, emb[:, :2]*0):
        with pytest.raises(StaleArtefact, match='has not length one'):
            towers.save_embeddings(run, 'm', 'text', list('abc'), bad)


def test_a_model_is_not_read_with_another_tokenizer(run):
    towers.save_clip(run, 'm', small())
    run.path('models/m/tokenizer.json').unlink()
    with pytest.raises(StaleArtefact, match='tokenizer.json'): towers.load_clip(run, 'm')


def test_cut_weights_are_refused(run):
    towers.save_clip(run, 'm', small())
    path = run.path('models/m/model.safetensors')
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StaleArtefact, match='model.safetensors'): towers.load_clip(run, 'm')


def test_accumulation_is_refused(run):
    s = clips.Settings(start='scratch', recipe=clips.Recipe(accumulate=2))
    with pytest.raises(ValueError, match='accumulate > 1'): clips.train_clip(run, None, s)


def biomed(folder): # BiomedCLIP's classes, small: a transformer of timm, a BERT of transformers, its tokenizer
    import open_clip
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    words = ['[PAD]', '[CLS]', '[SEP]', '[UNK]', 'no', 'left', 'right', 'pleural', 'effusion']
    t = Tokenizer(models.WordLevel({w: k for k, w in enumerate(words)}, unk_token='[UNK]'))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [('[CLS]', 1), ('[SEP]', 2)]
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=marks)
    fast = dict(pad_token='[PAD]', cls_token='[CLS]', sep_token='[SEP]', unk_token='[UNK]')
    PreTrainedTokenizerFast(tokenizer_object=t, **fast).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                         max_position_embeddings=32)).config.save_pretrained(folder)
    hub = 'microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract' # as in the genuine file
    text = dict(hf_model_name=hub, hf_tokenizer_name=hub, hf_proj_type='mlp', context_length=12,
                hf_pooler_type='cls_last_hidden_state_pooler')
    vision = dict(timm_model_name='test_vit', timm_pool='', timm_proj='linear', image_size=64)
    cfg = dict(embed_dim=16, vision_cfg=vision, text_cfg=text)
    facts = dict(model_cfg=cfg, preprocess_cfg=dict(size=[64, 64]))
    (folder/'open_clip_config.json').write_text(json.dumps(facts))
    text |= dict(hf_model_pretrained=False, hf_model_name=str(folder))
    cfg |= dict(vision_cfg=vision | dict(timm_model_pretrained=False), text_cfg=text)
    return open_clip.CustomTextCLIP(**cfg)


def test_a_folder_of_biomedclip_classes(run, tmp_path, monkeypatch):
    "The files name towers of the hub, and nobody asks it."
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    folder = tmp_path/'biomed'
    folder.mkdir()
    torch.manual_seed(0)
    model = biomed(folder)
    with pytest.raises(towers.MissingWeights, match='has no weights'): towers.pretrained_clip(str(folder))
    torch.save(model.state_dict(), folder/'open_clip_pytorch_model.bin')
    clip = towers.pretrained_clip(str(folder))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), clip.model.state_dict().values()))
    ids, xb = clip.tokens(['no left pleural effusion']), torch.randn(2, 1, 64, 64)
    assert ids.tolist()[0] == [1, 4, 5, 7, 8, 2] + [0]*6
    towers.save_clip(run, 'b', clip, str(folder))
    (folder/'config.json').rename(tmp_path/'config.json')
    with pytest.raises(towers.MissingWeights, match='with config.json of its text tower'):
        towers.pretrained_clip(str(folder))
    (folder/'open_clip_pytorch_model.bin').unlink()  # a kept model needs the folder no more
    back = towers.load_clip(run, 'b')
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in clip.state_dict().items())
    with torch.inference_mode():
        again = back(xb, back.tokens(['no left pleural effusion']))
        for a, b in zip(clip(xb, ids)[:2], again[:2]): assert torch.allclose(a, b, atol=1e-5)
        assert towers.image_features(back, xb)['local'].shape[2] == 16


def test_weights_that_do_not_fit_are_an_error(tmp_path):
    folder = tmp_path/'biomed'
    folder.mkdir()
    state = biomed(folder).state_dict()
    state.pop('text.proj.0.weight')
    torch.save(state, folder/'open_clip_pytorch_model.bin')
    with pytest.raises(towers.MissingWeights, match='cannot be had'): towers.pretrained_clip(str(folder))
