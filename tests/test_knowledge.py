"""Knowledge outside of its notebook: files in the package, a changed file, and services on the web that misbehave."""
import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import check
import pytest

from cxr_explain import knowledge
from cxr_explain.config import package_dir
from cxr_explain.findings import LABELS
from cxr_explain.knowledge import EUROPE_PMC, OPENI, TAVILY, WEB_WORDS, load_cards, web_context, web_query

FILES = 'cards.json', 'card_questions.csv'


def test_built_package_holds_the_files(tmp_path):
    steps = ['egg_info', '-e', tmp_path, 'build_py', '-d', tmp_path/'built']
    command = [sys.executable, 'setup.py', '-q', *map(str, steps)]
    subprocess.run(command, cwd=check.ROOT, check=True, capture_output=True)
    assert [(tmp_path/'built'/'cxr_explain'/f).read_bytes() for f in FILES] == [
        (package_dir()/f).read_bytes() for f in FILES]


@pytest.mark.parametrize('name, says', [('cards.json', 'set CARDS to'), ('card_questions.csv', 'set QUESTIONS to')])
def test_a_changed_file_is_noticed(tmp_path, monkeypatch, name, says):
    cards = load_cards()
    for f in FILES: shutil.copy(package_dir()/f, tmp_path)
    text = (tmp_path/name).read_text(encoding='utf-8')
    (tmp_path/name).write_text(text.replace('heart', 'hart', 1), encoding='utf-8')
    monkeypatch.setattr(knowledge, 'package_dir', lambda: tmp_path)
    with pytest.raises(ValueError, match=says):
        load_cards() if name == 'cards.json' else knowledge.load_questions(cards)
    assert len(load_cards(tmp_path/'cards.json')) == len(cards) # a file of one's own is not bound


def test_terms_of_devices():
    "As in a reviewed map of RadLex; other people's lists often swap them."
    found = {c.id: c.radlex[0] for c in load_cards().values() if c.kind == 'device'}
    assert found == dict(endotracheal_tube='RID5557', central_line='RID5578', pacemaker='RID5436',
                         chest_drain='RID5573', nasogastric_tube='RID5566')


ANSWERS = { # in the form of the services' documentation, content made up
    'europepmc': {'resultList': {'result': [
        {'source': 'MED', 'id': '1', 'title': 'A <b>title</b>', 'authorString': 'Nobody N.', 'pubYear': '2026'},
        {'source': 'PPR', 'id': 'PPR2', 'title': 'Another'}]}},
    'openi': {'total': 1, 'list': [{'uid': 'PMC1_f1', 'title': 'A title', 'image': {'caption': 'x'*999}}]},
    'tavily': {'results': [{'url': 'https://example.org/1', 'title': 'A title', 'content': 'Words.'}]}}


class Service(BaseHTTPRequestHandler):
    def do_GET(self, body=b''):
        self.server.asked.append((self.path, dict(self.headers), body))
        how = self.server.how
        if how == 'slow': time.sleep(1)
        self.send_response({'down': 500, 'elsewhere': 302}.get(how, 200))
        if how == 'elsewhere': self.send_header('Location', f'http://127.0.0.1:{self.server.server_port}/away')
        self.end_headers()
        text = how if how not in ANSWERS else json.dumps(ANSWERS[how])
        with contextlib.suppress(OSError): self.wfile.write(text.encode()) # the other side may have left

    def do_POST(self): self.do_GET(self.rfile.read(int(self.headers['Content-Length'])))
    def log_message(self, *args): pass


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('TAVILY_API_KEY', 'secret-key')
    server = ThreadingHTTPServer(('127.0.0.1', 0), Service)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown(); server.server_close()


def at(source, server): return replace(source, url=f'http://127.0.0.1:{server.server_port}/search')


@pytest.mark.parametrize('source', [EUROPE_PMC, OPENI, TAVILY], ids=lambda s: s.name)
def test_service_answers(service, source):
    service.how = source.name
    found, why = web_context('Pleural Effusion', at(source, service), allow=True)
    assert why == '' and found and all(f['id'].startswith(f'W:{source.name}:') for f in found)
    assert found[0]['title'] == 'A title' and len(found[0]['text']) <= 300
    [(path, headers, body)] = service.asked
    words = json.loads(body)['query'] if body else parse_qs(urlsplit(path).query)['query'][0]
    assert words == 'pleural effusion chest radiograph'
    assert headers.get('Authorization') == ('Bearer secret-key' if source is TAVILY else None)


@pytest.mark.parametrize('source', [EUROPE_PMC, TAVILY], ids=lambda s: s.name)
@pytest.mark.parametrize('how', ['slow', 'down', 'elsewhere', 'no JSON', '[]', '{"list": 1}', 'null', 'openi'])
def test_service_fails_softly(service, source, how):
    service.how = how
    with pytest.warns(UserWarning, match='gave no answer'):
        found, why = web_context('Edema', at(source, service), allow=True, timeout=.3)
    assert found == [] and 'gave no answer' in why and 'secret' not in why
    assert not any('away' in path for path, *_ in service.asked) # it does not follow, and no key goes with it


def test_off_without_leave(service):
    service.how = 'europepmc'
    assert web_context('Edema', at(EUROPE_PMC, service))[0] == [] and service.asked == []


def test_no_key_no_question(service, monkeypatch):
    monkeypatch.delenv('TAVILY_API_KEY')
    with pytest.warns(UserWarning, match='TAVILY_API_KEY holds no key'):
        assert web_context('Edema', at(TAVILY, service), allow=True)[0] == []
    assert service.asked == []


def test_only_words_of_findings_leave():
    assert all(set(web_query(l).split()) <= WEB_WORDS for l in LABELS[1:])
    for words in ('No Finding', 'edema', 'Edema of Mr Doe', 'the heart is large', ''):
        with pytest.raises(ValueError): web_query(words)
