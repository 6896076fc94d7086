"""The steps that ran before pytest (`make test`): checks, every chapter twice, the comparison. One test each."""
import json
import os
from pathlib import Path

import pytest

FILE = os.environ.get('CXR_EXPLAIN_STEPS')
STEPS = json.loads(Path(FILE).read_text(encoding='utf-8')) if FILE else {}


@pytest.mark.skipif(not FILE, reason='only as the last step of `make test`')
@pytest.mark.parametrize('step', STEPS or ['none'])
def test_step(step):
    assert not STEPS[step], '\n'.join(STEPS[step])
