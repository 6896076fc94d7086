"Models that write: another class through the same loader, weights that are missing or damaged, the same bytes twice."
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from cxr_explain import decoder as decoders
from cxr_explain import vlm as vlms
from cxr_explain.cnn import MissingWeights
from cxr_explain.config import MissingArtefact, Run, StaleArtefact
from cxr_explain.findings import Finding
from cxr_explain.train import Recipe, fit

TEXTS = ['Small left effusion.', 'No edema.', 'Clear lungs.']
FILMS = np.random.default_rng(0).random((3, 32, 32), dtype=np.float32)
TINY = vlms.Settings(32, 2, 1, 400, '')


def gemma3(): # the class of MedGemma, small
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor
    marks = dict(image_token='<image_soft_token>', boi_token='<start_of_image>', eoi_token='<end_of_image>')
    t = decoders.make_tokenizer(TEXTS, ['<pad>', '<bos>', '<eos>', *marks.values()], 300, pad_token='<pad>',
                                bos_token='<bos>', eos_token='<eos>', extra_special_tokens=marks)
    t.chat_template = ("{{ bos_token }}{% for m in messages %}{% for c in m['content'] %}"
                       "{{ '<start_of_image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endfor %}")
    image, boi, eoi = (t.convert_tokens_to_ids(m) for m in marks.values())
    size = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2)
    config = Gemma3Config(
        text_config=size | dict(vocab_size=len(t), num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1,
                                eos_token_id=2),
        vision_config=size | dict(image_size=32, patch_size=8), mm_tokens_per_image=4, image_token_index=image,
        image_token_id=image, boi_token_index=boi, eoi_token_index=eoi)
    torch.manual_seed(0)
    look = Gemma3ImageProcessor(size=dict(height=32, width=32), do_pan_and_scan=False)
    processor = Gemma3Processor(look, t, chat_template=t.chat_template, image_seq_length=4)
    return vlms.Vlm(Gemma3ForConditionalGeneration(config).eval(), processor)


def saved(vlm, folder):
    vlm.model.save_pretrained(folder); vlm.processor.save_pretrained(folder)
    return folder


def lfm2():
    t, view = vlms.chat_tokenizer(TEXTS*20, 400), vlms.View(32)
    return vlms.Vlm(vlms.build_lfm2vl(t, view, TINY).eval(), vlms.build_processor(t, view))


@pytest.mark.parametrize('make', [gemma3, lfm2])
def test_every_class_goes_through_the_same_functions(make, tmp_path):
    own = make()
    other = vlms.load_vlm(saved(own, tmp_path))
    assert type(other.model) is type(own.model) and not other.model.training
    said = vlms.describe_images(other, FILMS, max_tokens=6)
    assert said == vlms.describe_images(own, FILMS, max_tokens=6)
    assert ''.join(vlms.stream_text(other, FILMS[0], max_tokens=6)) == said[0]
    names = vlms.adapted_modules(vlms.add_adapters(other.model, 2))
    assert names and not any('vision' in n for n in names)


def test_a_tensor_that_is_not_in_the_files_is_an_error(tmp_path):
    state = load_file(saved(lfm2(), tmp_path)/'model.safetensors')
    lost = next(k for k in state if 'projector' in k and 'linear_2' in k)
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path/'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(MissingWeights, match='lacks 1 tensors'): vlms.load_vlm(tmp_path)


@pytest.mark.parametrize('name', ['google/medgemma-of-nobody', './no/such/folder', 'nothing'])
def test_weights_that_cannot_be_had_are_an_error_that_says_what_to_do(name, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(MissingWeights, match='give a folder with the weights'): vlms.load_vlm(name)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_EXPLAIN_RUNS', str(tmp_path))
    return Run('decoder', 'smoke')


def trained():
    facts = [(Finding('Pleural Effusion', side='left'),), (Finding('Edema', 0),), (Finding('No Finding'),)]
    pairs = pd.DataFrame(dict(facts=facts, text=TEXTS))
    made = decoders.build_decoder(TEXTS, decoders.Settings(16, 1, 400))
    answers = decoders.decoder_answers(made, pairs)
    fit(made.model, answers, decoders.answer_loss, Recipe(epochs=4, batch=3, optimizer="muon"))
    return made, facts


def test_two_trainings_leave_the_same_bytes(run):
    def files(name):
        made, _ = trained()
        folder = decoders.keep_pretrained(run, name, (made.model, made.tokenizer), {})
        return {f.name: f.read_bytes() for f in folder.iterdir()}
    assert files('a') == files('b')


def test_a_kept_decoder_comes_back_and_a_touched_one_does_not(run):
    with pytest.raises(MissingArtefact): decoders.load_decoder(run)
    made, facts = trained()
    folder = decoders.keep_pretrained(run, 'decoder', (made.model, made.tokenizer), {})
    again = decoders.load_decoder(run)
    assert decoders.write_sentences(again, facts) == decoders.write_sentences(made, facts)
    text = (folder/'tokenizer.json').read_text()
    (folder/'tokenizer.json').write_text(text.replace('<write>', '<wrote>'))
    with pytest.raises(StaleArtefact, match='tokenizer.json was changed'): decoders.load_decoder(run)


def test_order_of_facts_and_company_change_nothing():
    made, facts = trained()
    both = [facts[0][0], facts[1][0]]
    assert decoders.write_sentence(made, both) == decoders.write_sentence(made, both[::-1])
    assert decoders.write_sentences(made, facts*3, batch=2) == decoders.write_sentences(made, facts)*3


def test_an_answer_is_the_same_alone_and_in_a_batch():
    own = dataclasses.replace(lfm2())
    fit(own.model, vlms.picture_answers(own, (FILMS*255).astype(np.uint8), TEXTS), decoders.answer_loss,
        Recipe(epochs=30, batch=3, lr=2e-2, optimizer='muon'))
    said = vlms.describe_images(own, FILMS)
    assert len(set(said)) > 1 and said == [vlms.describe_image(own, f) for f in FILMS]
