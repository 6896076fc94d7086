"The guard at sizes and in cases that a notebook cell would not show."
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from cxr_explain.config import make_rng
from cxr_explain.leaks import (
    LeakError,
    check_leaks,
    crossing,
    fine_likeness,
    fingerprint,
    image_hash,
    make_hashes,
    near_copies,
    near_pairs,
    rough_likeness,
    shared_reports,
    thumbnails,
)


def frame(n, parts=('train', 'test'), **columns):
    ids = [f'i{k}' for k in range(n)]
    part = [parts[k % len(parts)] for k in range(n)]
    base = dict(image_id=ids, study_id=ids, patient_id=ids, split_group=ids, part=part, row=np.arange(n),
                findings=None, impression=None, label_no_finding=0.)
    return pd.DataFrame(base | columns)


def films(n, px=64):
    from PIL import Image
    small = make_rng(0, 'films', px).integers(0, 256, (n, 20, 20), np.uint8)
    return np.stack([np.asarray(Image.fromarray(im).resize((px, px), Image.BICUBIC)) for im in small])


@pytest.mark.parametrize('skew', [0., .55, 1.5])
@pytest.mark.parametrize('radius', range(8))
def test_search_equals_brute_force(skew, radius):
    hashes = make_hashes(700, make_rng(radius, 'h', int(10*skew)), skew)
    hashes[350:] = hashes[:350] ^ (np.uint64(1) << make_rng(1, 'f').integers(0, 64, 350, np.uint64))
    distance = np.bitwise_count(hashes[:, None] ^ hashes)
    assert np.array_equal(near_pairs(hashes, radius), np.argwhere(np.triu(distance <= radius, 1)))


@pytest.mark.parametrize('hashes', [[], [7], [7, 7], [0]*50, [2**64 - 1, 0]])
def test_search_of_small_and_equal_sets(hashes):
    hashes = np.array(hashes, np.uint64)
    n = len(hashes)
    wanted = 0 if n == 2 and hashes[0] != hashes[1] else n*(n - 1)//2
    assert len(near_pairs(hashes)) == wanted


@pytest.mark.parametrize('bits', [(0, 1, 16, 17, 32, 33, 48, 49), (3, 20, 40, 60)])
def test_bits_spread_over_all_quarters_are_the_hard_case(bits):
    a = make_hashes(1, make_rng(0, 'one'))[0]
    for n in range(1, min(len(bits), 7) + 1):
        b = a ^ np.bitwise_or.reduce(np.uint64(1) << np.array(bits[:n], np.uint64))
        assert len(near_pairs(np.array([a, b]), n)) == 1 and len(near_pairs(np.array([a, b]), n - 1)) == 0


def test_search_at_the_size_of_mimic_stays_small_and_quick():
    hashes = make_hashes(377_110, make_rng(0, 'h'))
    hashes[-1] = hashes[0] ^ np.uint64(0b111)
    tracemalloc.start()
    start = time.process_time()
    pairs = near_pairs(hashes)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [0, 377_109] in pairs.tolist() and len(pairs) < 10
    assert seconds < 60 and peak < 200e6, f'{seconds:.1f} s, {peak/1e6:.0f} MB'


def test_hash_ignores_every_monotone_change_of_gray():
    imgs = films(5)
    lut = np.uint8(np.linspace(0, 1, 256)**.5*200 + 20)
    strict = np.uint8(np.arange(256)//2 + 60)
    assert np.bitwise_count(image_hash(thumbnails(imgs)) ^ image_hash(thumbnails(lut[imgs]))).max() <= 4
    assert np.bitwise_count(image_hash(thumbnails(imgs)) ^ image_hash(thumbnails(strict[imgs]))).max() <= 4
    assert np.bitwise_count(image_hash(thumbnails(imgs)) ^ image_hash(thumbnails(imgs[:, :, ::-1]))).min() > 10


def test_thumbnails_refuse_odd_sizes():
    with pytest.raises(ValueError, match='multiple of 32'): thumbnails(np.zeros((1, 50, 50), np.uint8))


def test_a_flipped_copy_is_not_taken_for_the_film():
    imgs = films(4)
    imgs[3] = imgs[0][:, ::-1]
    assert check_leaks(frame(4), fingerprint(imgs))[0]['near_image'] == 0


def test_rows_in_another_order_than_the_cache():
    imgs = films(6)
    imgs[5] = imgs[0]
    m = frame(6, part=['train']*3 + ['test']*3).iloc[::-1].reset_index(drop=True)
    with pytest.raises(LeakError, match='pixels: 1 across parts, such as i5 and i0'): check_leaks(m, fingerprint(imgs))


def test_all_leaks_are_told_at_once_and_kept_in_the_error():
    imgs = films(6)
    imgs[1] = imgs[0]
    with pytest.raises(LeakError) as e: check_leaks(frame(6, patient_id=list('aabcde')), fingerprint(imgs))
    assert set(e.value.leaks.kind) == {'patient', 'pixels'}
    assert 'give all images of the patient one part' in str(e.value)


def test_copies_inside_one_part_pass():
    imgs = films(6)
    imgs[2] = imgs[0]
    leaks, passed = check_leaks(frame(6), fingerprint(imgs))
    assert not any(leaks.values()) and passed['near_copies'] == 1


def test_external_is_a_part_like_any_other():
    with pytest.raises(LeakError, match='patient'): check_leaks(frame(2, ('train', 'external'), patient_id='same'))


def test_missing_keys_are_not_shared():
    assert crossing([None, None, np.nan], frame(3)).empty


def letters(k): return chr(97 + k % 26) + chr(97 + k//26 % 26)


def corpus(n):
    "Reports of seven sentences, of which six are everybody's."
    rng, parts = make_rng(0, 'words'), ('heart', 'lung', 'aorta', 'hilum', 'spine', 'rib', 'chest')
    common = [f'The {w} is normal in size and shape.' for w in parts]
    own = [f'There is an opacity of kind {letters(k)} in the left lung base.' for k in range(n)]
    return [' '.join([*rng.choice(common, 6, replace=False), s]) for s in own]


def test_sentences_in_common_are_no_copy():
    assert shared_reports(frame(300, findings=corpus(300))).empty


def test_one_rare_sentence_among_common_ones_is_chance_or_not_by_its_bits():
    texts = corpus(300)
    texts[7] = texts[0].replace('The', 'the').replace('. ', '.  ')
    shared = shared_reports(frame(300, findings=texts))
    assert shared[['a', 'b']].values.tolist() == [['i0', 'i7']]
    assert 8 < shared.bits[0] < 25 and not shared.leak[0], 'another patient may well have the same finding'


def test_long_rare_texts_leak_and_macros_do_not():
    def rare(k): return ' '.join(f'The {w} of case {letters(k)} shows a sign that nobody else has.' for w in
                                 ('heart', 'lung', 'rib', 'spine'))
    texts = [rare(k) for k in range(200)]
    texts[1:40] = ['The lungs are clear. The heart is of normal size. There is no effusion and no pneumothorax.']*39
    texts[101] = texts[100].upper()
    shared = shared_reports(frame(200, findings=texts)).set_index('key')
    assert len(shared) == 2 and shared.leak.sum() == 1 and shared.a[shared.leak].item() == 'i100'
    assert not shared_reports(frame(200, findings=texts, label_no_finding=1.)).leak.any()
    with pytest.raises(LeakError, match='report: 1 across parts, such as i100 and i101'):
        check_leaks(frame(200, findings=texts))


@pytest.mark.parametrize('px', [64, 128, 224])
def test_likeness_is_a_correlation(px):
    prints, pairs = fingerprint(films(3, px)), np.array([[0, 0], [0, 1], [1, 0]])
    for like in (rough_likeness(prints.prints, pairs), fine_likeness(prints.pixels, pairs)):
        assert abs(like[0] - 1) < 1e-5 and np.isclose(like[1], like[2]) and abs(like[1]) < .6
    assert rough_likeness(prints.prints, np.zeros((0, 2), int)).shape == (0,)


def test_a_shifted_copy_is_found():
    imgs = films(6, 128)
    imgs[5] = np.roll(imgs[0], 1, 1)
    pairs, looks = near_copies(fingerprint(imgs), np.arange(6), np.arange(6))
    assert pairs.tolist() == [[0, 5]] and looks['near_copies'] == 1
    assert near_copies(fingerprint(imgs), np.arange(6), np.zeros(6))[1]['close_hashes'] == 0, 'all in one group'
