"""The website: built whole from the repository, checked as files and, where a Chromium is found, in a real browser."""
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip('pypandoc', reason='the site needs the extra [site]')
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
TABLE = ('<div><style>td{}</style><script>alert(1)</script><table onclick="x()"><thead><tr><th></th><th>auroc</th></tr>'
         '</thead><tbody><tr><th>cnn</th><td>0.5</td></tr></tbody></table><a href="javascript:alert(1)">x</a></div>')
PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=='


def load():
    spec = importlib.util.spec_from_file_location('cxr_explain_site', ROOT/'tools'/'site.py')
    module = sys.modules['cxr_explain_site'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

site = load()


def soup(path): return BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'docs'
    return out, site.build(out)


def test_no_problems(built): assert site.check(*built) == []

def test_every_page_is_whole(built):
    out, pages = built
    for page in pages:
        html = soup(out/page.url)
        assert 'Research only, not for clinical use' in html.select_one('.research-banner').text, page.url
        assert html.html['lang'] and html.title.text and len(html.select('h1')) == 1, page.url
        assert all(html.select(s) for s in ('a.skip', 'header', 'nav[aria-label]', 'main#main', 'footer')), page.url
        assert len(html.select('.side a[aria-current=page]')) == 1, page.url
        facts = site.facts()
        assert facts['version'] in html.footer.text and 'Apache' in html.footer.text

def test_reading_order_is_a_chain(built):
    out, pages = built
    order = [href for _, entries in site.sidebar() for href, _ in entries]
    urls = [re.sub(r'\.\w+$', '.html', href) for href in order]
    for url, after in zip(urls, urls[1:]):
        assert soup(out/url).select('.turn a')[-1]['href'].endswith(after.split('/')[-1])

def test_nothing_from_outside(built):
    out, _ = built
    for path in [*out.rglob('*.html'), *out.glob('*.css'), *out.glob('site.js')]:
        text = path.read_text(encoding='utf-8')
        # in a tag, or in what a style or script may load; text that shows such a tag is no tag
        assert not re.search(r'<(?!a\b)[a-z][^>]*\s(?:src|href|data)\s*=\s*["\']?(?:https?:)?//', text), path.name
        assert not re.search(r'(?:url\(|@import|fetch\()\s*["\']?(?:https?:)?//', text), path.name

def test_search_index(built):
    out, pages = built
    text = (out/'search_index.js').read_text(encoding='utf-8')
    entries = json.loads(text.removeprefix('window.searchIndex = ').removesuffix(';\n'))
    assert {e['url'].split('#')[0] for e in entries} == {p.url for p in pages}
    assert any('close_upward' in e['text'] for e in entries), 'functions can be searched for'

def test_hidden_cells_stay_hidden(built):
    out, pages = built
    for page in (p for p in pages if p.source.suffix == '.ipynb'):
        html = (out/page.url).read_text(encoding='utf-8')
        assert '#| hide' not in html and '#| export' not in re.sub('<span class="st">.*?</span>', '', html), page.url

def test_quarto_reads_the_same_files():
    config = yaml.safe_load(site.quarto_yml())
    assert config['metadata-files'] == ['nbdev.yml', 'sidebar.yml'] and config['execute'] == {'enabled': False}
    assert config['format']['html']['html-math-method'] == 'mathml'
    assert '{version}' not in json.dumps(config)

def test_out_is_not_emptied_by_mistake(tmp_path):
    (tmp_path/'thesis.txt').write_text('years of work')
    with pytest.raises(SystemExit, match='not a site'): site.build(tmp_path)
    assert (tmp_path/'thesis.txt').exists()


@pytest.fixture
def probe(tmp_path, monkeypatch):
    "A tiny `nbs/` with one notebook that holds every kind of output, and one prose page with every fault."
    import nbformat.v4 as v4
    nbs = tmp_path/'nbs'
    shutil.copytree(ROOT/'nbs'/'images', nbs/'images')
    for name in ('styles.css', 'references.bib'): shutil.copy(ROOT/'nbs'/name, nbs/name)
    code = '#| label: fig-dot\n#| fig-cap: "A dot, $x^2$ [@irvin2019]."\n#| fig-alt: "One dot."\ndraw()'
    shows = lambda source, **data: v4.new_code_cell(source, outputs=[v4.new_output('display_data', data)])
    says = lambda source, text: v4.new_code_cell(source, outputs=[v4.new_output('stream', name='stdout', text=text)])
    figure, table = shows(code, **{'image/png': PNG, 'text/plain': '<Figure>'}), shows('table', **{'text/html': TABLE})
    stream, hidden = says('#| echo: false\nshow()', 'a < b\n'), says('#| hide\nsecret()', 'secret')
    note = v4.new_markdown_cell('::: {.callout-note title="Mind"}\nText.\n:::')
    plot = shows('fig', **{'application/vnd.plotly.v1+json': dict(data=[dict(y=[1, 2])], layout={})})
    cells = [v4.new_code_cell('#| default_exp probe'), v4.new_markdown_cell('# Probe\n\nOne line.'),
             v4.new_code_cell('#| export\ndef shown(): return 1'), figure, table, stream, hidden, note, plot]
    (nbs/'00_probe.ipynb').write_text(json.dumps(v4.new_notebook(cells=cells)))
    (nbs/'index.qmd').write_text('---\ntitle: Home\n---\n[gone](gone.qmd) [no](00_probe.ipynb#no) ![](images/logo.svg) '
                                 '[@nobody2000] {{< include x >}} $\\nonsense{$\n')
    (nbs/'sidebar.yml').write_text('website: {sidebar: {contents: [index.qmd, 00_probe.ipynb, times.qmd]}}')
    (nbs/'results').mkdir()
    timing = [dict(name='rate', value=1234.5, seed=0, px=128), dict(name='gone', value=None, reason='no data')]
    (nbs/'results'/'probe.timing.json').write_text(json.dumps(timing))
    monkeypatch.setattr(site, 'NBS', nbs)
    out = tmp_path/'docs'
    return out, site.build(out)

def test_outputs(probe):
    out, pages = probe
    text = (out/'00_probe.html').read_text(encoding='utf-8')
    html = BeautifulSoup(text, 'html.parser')
    figure = html.select_one('figure#fig-dot')
    assert figure.img['alt'] == 'One dot.' and figure.math and figure.select_one('.citation')
    assert (out/figure.img['src']).read_bytes().startswith(b'\x89PNG')
    assert 'shown' in html.main.text and 'default_exp' not in html.main.text and 'One line.' in html.main.text
    assert 'secret' not in text and 'show()' not in html.main.text and 'a < b' in html.main.text
    assert 'alert(1)' not in text and 'onclick' not in text
    assert html.select_one('.table-wrap td.num') and html.select_one('th[scope=row]')
    assert html.select_one('.callout-note .callout-title').text == 'Mind'
    assert 'Plotly.newPlot' in text and (out/'plotly.min.js').exists()
    assert 'plotly' not in (out/'index.html').read_text(encoding='utf-8')

def test_times_come_from_the_timing_files(probe):
    text = soup(probe[0]/'times.html').main.text
    assert all(part in text for part in ('probe', 'rate', '1,234', 'px: 128', 'none', 'reason: no data'))

def test_same_bytes_twice(probe, tmp_path):
    out, _ = probe
    site.build(tmp_path/'again')
    for path in (p for p in out.rglob('*') if p.is_file()):
        assert path.read_bytes() == (tmp_path/'again'/path.relative_to(out)).read_bytes(), path.name

def test_check_finds_faults(probe):
    problems = '\n'.join(site.check(*probe))
    for fault in ('broken link: gone.html', 'no such section: 00_probe.html#no', 'alt text', 'nobody2000', "'{{<'",
                  'formula'):
        assert fault in problems, f'{fault} was not found in:\n{problems}'


# A real browser

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
needs_browser = pytest.mark.skipif(not BROWSER, reason='no Chromium on this machine (Debian: apt-get install chromium)')

def browse(tmp_path, url, *options, width=1280):
    args = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--enable-logging=stderr',
            f'--user-data-dir={tmp_path/"profile"}', f'--window-size={width},900', '--virtual-time-budget=4000']
    return subprocess.run([*args, *options, url], capture_output=True, timeout=120)

FRAME = """<iframe id="f" src="PAGE" style="width:WIDTHpx;height:800px;border:0"></iframe><pre id="r"></pre><script>
f.onload = () => setTimeout(() => {
  const w = f.contentWindow, d = f.contentDocument;
  SCRIPT;
  setTimeout(() => { r.textContent = JSON.stringify([d.documentElement.scrollWidth - w.innerWidth,
    w.getComputedStyle(d.body).backgroundColor, d.getElementById('hits').textContent,
    w.performance.getEntriesByType('resource').map(e => e.name)]) }, 800)
}, 300)</script>"""

def measure(built, tmp_path, page, width, script=''):
    "A page in a frame of that width, after `script`: ([overflow in px, background, search hits, resources], errors)."
    out, _ = built
    probe_page = out/'probe.html'
    html = FRAME.replace('PAGE', page).replace('WIDTH', str(width)).replace('SCRIPT', script)
    probe_page.write_text(html, encoding='utf-8')
    done = browse(tmp_path, probe_page.as_uri(), '--dump-dom', '--allow-file-access-from-files')
    probe_page.unlink()
    errors = [line for line in done.stderr.decode(errors='replace').splitlines() if 'CONSOLE' in line]
    return json.loads(BeautifulSoup(done.stdout, 'html.parser').select_one('#r').text), errors

@needs_browser
@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('page', ['index.html', 'introduction.html', '03_findings.html'])
def test_page_fits(built, tmp_path, page, width):
    (overflow, _, _, resources), errors = measure(built, tmp_path, page, width)
    assert overflow <= 0 and errors == []
    assert all(url.startswith('file:') for url in resources)

@needs_browser
def test_theme_and_search(built, tmp_path):
    light, _ = measure(built, tmp_path, 'index.html', 1280)
    script = ('const box = d.getElementById("search"); d.getElementById("theme").click(); box.value = "hierarchy";'
              'box.dispatchEvent(new w.Event("input"))')
    dark, errors = measure(built, tmp_path, 'index.html', 1280, script)
    assert light[1] != dark[1] and '2 Findings' not in light[2] and 'hierarchy' in dark[2].lower() and errors == []

@needs_browser
def test_screenshot(built, tmp_path):
    shot = tmp_path/'shot.png'
    browse(tmp_path, (built[0]/'index.html').as_uri(), f'--screenshot={shot}', width=500)
    assert shot.stat().st_size > 10_000
