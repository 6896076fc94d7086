"""The website: Quarto where it is installed, else this thin renderer from the same files.

    python tools/site.py [--out _docs] [--check] [--thin]

Both ways use nbdev's own processing of cells; the thin one then hands Markdown to pandoc (pypandoc_binary). Pages use
what both render: headings, figures (`#| label`, `#| fig-cap`, `#| fig-alt`), callouts, math, citations, links, tables.
`--check` fails on broken links, missing alt texts, unknown citations, outside resources and unlisted pages.
"""
import argparse
import base64
import configparser
import html
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from string import Template
from urllib.parse import unquote, urlsplit

import pypandoc
import yaml
from bs4 import BeautifulSoup, Comment

ROOT = Path(__file__).resolve().parent.parent
NBS, ASSETS = ROOT/'nbs', ROOT/'tools'/'site_assets'
TIMES = Path('times.qmd')  # made here, not kept
# nbdev would replace exported cells by their signatures; a literate page shows their source and runs nothing.
SKIPPED = 'FrontmatterProc,insert_warning,add_show_docs,exec_show_docs,add_links'
TAGS = set(re.findall(r'\w+', 'a b br caption code col colgroup dd div dl dt em h3 h4 hr i li ol p pre s small span '
                             'strong sub sup table tbody td tfoot th thead tr u ul'))
NUMBER = re.compile(r'[-+−]?[\d.,]+(e[-+]?\d+)?\s*%?|nan|NaN|None|')
ATTRS = {'colspan', 'rowspan', 'scope', 'href', 'title', 'class', 'id'}


@dataclass
class Page:
    source:Path             # below nbs/
    title:str = ''
    description:str = ''
    text:str = ''           # Markdown with the stored outputs in it
    files:dict = field(default_factory=dict)  # path below the site -> bytes
    plotly:bool = False
    problems:list = field(default_factory=list)
    body:BeautifulSoup = None
    code:list = field(default_factory=list)   # highlighted blocks, kept out of `body`: thousands of tags

    @property
    def url(self): return self.source.with_suffix('.html').as_posix()

    @property
    def root(self): return '../' * (len(self.source.parts) - 1)


# What Quarto reads too

def facts():
    parser = configparser.ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']

def quarto_yml():
    "The site's configuration, with the version that settings.ini states."
    return (ROOT/'_quarto.yml').read_text(encoding='utf-8').replace('{version}', facts()['version'])

def sidebar():
    "[(section title or '', [(source below nbs/, text)])] in reading order."
    contents = yaml.safe_load((NBS/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    entry = lambda e: (e, '') if isinstance(e, str) else (e['href'], e.get('text', ''))
    return [(e['section'], [entry(c) for c in e['contents']]) if 'section' in e else ('', [entry(e)])
            for e in contents]

def sources():
    found = {p.relative_to(NBS) for ext in ('ipynb', 'qmd') for p in NBS.rglob(f'*.{ext}')} | {TIMES}
    return sorted(p for p in found if not any(part[0] in '._' for part in p.parts))

def times():
    "The page of times, rates and memory, made from the published timing files: these differ from machine to machine."
    text = '---\ntitle: Times and memory\n---\n\nMeasured in the published phantom run. These numbers depend on the ' \
           'machine, so they stand apart from the results, which do not.\n'
    for path in sorted((NBS/'results').glob('*.timing.json')):
        records = json.loads(path.read_text(encoding='utf-8'))
        if records: text += f'\n## {path.name.split(".")[0]}\n\n| what | value | |\n|----|--:|------|\n'
        for r in records:
            more = ', '.join(f'{k}: {v}' for k, v in r.items() if k not in ('name', 'value', 'seed') and v is not None)
            text += f'| `{r["name"]}` | {"none" if r["value"] is None else format(r["value"], ",.4g")} | {more} |\n'
    return text if '##' in text else text + '\nNothing has been published yet.\n'


# A page's source -> Markdown

def join(text): return text if isinstance(text, str) else ''.join(text)

def raw(code): return f'\n``````{{=html}}\n{code}\n``````\n'

def clean_html(text):
    "Only what a table or a formatted value needs; no scripts, styles or handlers."
    soup = BeautifulSoup(text, 'html.parser')
    for tag in soup(['script', 'style', 'iframe', 'object', 'embed', 'svg']): tag.decompose()
    for comment in soup(string=lambda s: isinstance(s, Comment)): comment.extract()
    for tag in soup.find_all(True):
        if tag.name not in TAGS: tag.unwrap(); continue
        tag.attrs = {k: v for k, v in tag.attrs.items() if k in ATTRS and not str(v).lower().startswith('javascript:')}
    for cell in soup.select('thead th'): cell['scope'] = 'col'
    for cell in soup.select('tbody th'): cell['scope'] = 'row'
    for table in soup('table'):
        for head, *cells in zip(*(row(['th', 'td']) for row in table('tr'))):
            if cells and all(c.name == 'td' and NUMBER.fullmatch(c.text.strip()) for c in cells):
                for cell in (head, *cells): cell['class'] = 'num'
    return str(soup)

def figure(page, content, ext, name, opts):
    page.files[(page.source.parent/f'{page.source.stem}_files'/f'{name}.{ext}').as_posix()] = content
    alt = str(opts.get('fig-alt', '')).replace('"', '&quot;')
    label = f"#{opts['label']} " if 'label' in opts else ''
    return f'\n![{opts.get("fig-cap", "")}]({page.source.stem}_files/{name}.{ext}){{{label}fig-alt="{alt}"}}\n'

def show_output(page, out, name, opts):
    kind, data = out['output_type'], out.get('data', {})
    if kind == 'stream': return raw(f'<pre class="{out["name"]}">{html.escape(join(out["text"]))}</pre>')
    if kind == 'error': return raw(f'<pre class="stderr">{html.escape(out["ename"] + ": " + out["evalue"])}</pre>')
    if 'application/vnd.plotly.v1+json' in data:
        page.plotly, spec = True, json.dumps(data['application/vnd.plotly.v1+json']).replace('</', '<\\/')
        call = f'var f={spec};Plotly.newPlot("{name}",f.data,f.layout,{{responsive:true}});'
        return raw(f'<div id="{name}" class="plotly" role="img" aria-label="{html.escape(opts.get("fig-alt", ""))}">'
                   f'</div><script>(function(){{{call}}})()</script>')
    if 'text/html' in data: return raw(clean_html(join(data['text/html'])))
    if 'text/markdown' in data: return '\n' + join(data['text/markdown']) + '\n'
    if 'image/svg+xml' in data: return figure(page, join(data['image/svg+xml']).encode(), 'svg', name, opts)
    for mime, ext in (('image/png', 'png'), ('image/jpeg', 'jpg')):
        if mime in data: return figure(page, base64.b64decode(join(data[mime])), ext, name, opts)
    return raw(f'<pre class="plain">{html.escape(join(data.get("text/plain", "")))}</pre>')

def show_code(page, cell):
    lines = cell.source.splitlines()
    head = list(takewhile(lambda line: line.startswith('#|'), lines))
    opts = yaml.safe_load('\n'.join(line[2:].strip() for line in head)) or {}
    code = '\n'.join(lines[len(head):]).strip('\n')
    if opts.get('include') is False: return ''
    block = f'::: {{.cell-code}}\n~~~~~~ {{.python}}\n{code}\n~~~~~~\n:::\n'
    outputs = [o for o in cell.get('outputs', []) if opts.get('output', True)]
    shown = ''.join(show_output(page, o, f'{cell.id}-{k}', opts) for k, o in enumerate(outputs))
    if not code or not opts.get('echo', True): block = ''
    return block + (f'\n:::: {{.cell-output}}\n{shown}\n::::\n' if shown else '')

def read_notebook(page):
    from execnb.nbio import read_nb
    nb = read_nb(NBS/page.source)
    nbdev_processing()(nb)
    for cell in nb.cells:
        if cell.cell_type == 'markdown': page.text += cell.source + '\n\n'
        if cell.cell_type == 'code': page.text += show_code(page, cell) + '\n\n'
    title = re.search(r'^# +(.+?)\s*$', page.text, re.MULTILINE)
    page.title = title[1] if title else page.source.stem
    page.text = page.text.replace(title[0], '', 1) if title else page.text

def read_page(source):
    page = Page(source)
    if source.suffix == '.ipynb': read_notebook(page)
    else:
        page.text = times() if source == TIMES else (NBS/source).read_text(encoding='utf-8')
        meta = yaml.safe_load(re.match(r'---\n(.*?)\n---\n', page.text, re.DOTALL)[1])
        page.title, page.description = meta['title'], meta.get('description', '')
    return page


# Markdown -> page

def to_html(page):
    "pandoc, then what Quarto does after it: links to sources, callouts, alt texts, scrollable tables and code."
    args = ['--mathml', '--citeproc', f'--bibliography={NBS/"references.bib"}', '--metadata=link-citations:true',
            '--metadata=title:x', '--toc', '--toc-depth=3', f'--template={ASSETS/"body.html"}']
    toc, body = pypandoc.convert_text(page.text, 'html5', 'markdown', args).split('<!--toc ends-->')
    def keep(match):
        page.code.append(match[0].replace('<pre', '<pre tabindex="0"', 1))
        return f'<pre>{len(page.code) - 1}</pre>'
    page.body = soup = BeautifulSoup(re.sub('<pre.*?</pre>', keep, body, flags=re.DOTALL), 'html.parser')
    for a in soup.select('a[href]'):
        if not urlsplit(a['href']).scheme: a['href'] = re.sub(r'\.(ipynb|qmd)(?=#|$)', '.html', a['href'])
    for img in soup.select('img'):
        img['alt'], img['loading'] = img.attrs.pop('data-fig-alt', '') or img.get('alt', ''), 'lazy'
    for box in soup.select('div[class^=callout-]'):
        kind = box['class'][0].split('-')[1]
        heading = box.find(['h2', 'h3', 'h4'], recursive=False)
        title = box.attrs.pop('title', None) or (heading.extract().text if heading else kind.capitalize())
        box['class'], box['role'] = ['callout', f'callout-{kind}'], 'note'
        box.insert(0, soup.new_tag('p', string=title, attrs={'class': 'callout-title'}))
    frame = {'class': 'table-wrap', 'tabindex': '0', 'role': 'region', 'aria-label': 'Table'}
    for table in soup.select('table'): table.wrap(soup.new_tag('div', attrs=frame))
    return toc

def search_entries(page):
    "One entry a section: its heading, its prose and the names that its code defines."
    entry = dict(url=page.url, page=page.title, heading='', text='')
    entries = [entry]
    for item in page.body.children:
        if item.name in ('h2', 'h3'):
            entry = dict(url=f'{page.url}#{item["id"]}', page=page.title, heading=item.text, text='')
            entries.append(entry)
        elif item.name == 'div' and 'cell-code' in item.get('class', []):
            code = BeautifulSoup(page.code[int(item.pre.text)], 'html.parser').text
            entry['text'] += ' '.join(re.findall(r'(?:def|class) (\w+)', code)) + ' '
        elif item.name: entry['text'] += ' '.join(item.get_text(' ').split())[:3000] + ' '
    return entries

def link(page, href, text, here=False):
    url = href if urlsplit(href).scheme else page.root + re.sub(r'\.(ipynb|qmd)$', '.html', href)
    return f'<a href="{html.escape(url)}"{" aria-current=page" * here}>{html.escape(text)}</a>'

def navigation(page, pages, config):
    sections, titles = sidebar(), {p.source.as_posix(): p.title for p in pages}
    sections = [(s, [(href, text or titles[href]) for href, text in items if href in titles]) for s, items in sections]
    name = page.source.as_posix()
    items = lambda entries: ''.join(f'<li>{link(page, h, t, h == name)}</li>' for h, t in entries)
    side = ''.join(f'{f"<p>{html.escape(s)}</p>" if s else ""}<ul>{items(entries)}</ul>' for s, entries in sections)
    flat = [entry for _, entries in sections for entry in entries]
    at = [href for href, _ in flat].index(name) if name in dict(flat) else None
    before, after = (flat[at-1:at], flat[at+1:at+2]) if at is not None else ([], [])
    turn = [link(page, h, f'← {t}') for h, t in before] + ['<span></span>'] * (not before)
    navbar = ''.join(link(page, e['href'], e['text']) for e in config['website']['navbar']['left'])
    return dict(sidebar=side, turn=''.join(turn + [link(page, h, f'{t} →') for h, t in after]), navbar=navbar)

def write_page(page, toc, pages, config, out):
    plain = page.title.replace('`', '')
    site = config['website']['title']
    head = f'<script src="{page.root}plotly.min.js"></script>\n' if page.plotly else ''
    fields = dict(
        title=html.escape(plain if page.url == 'index.html' else f'{plain} – {site}'), title_html=html.escape(plain),
        description=html.escape(page.description), root=page.root, head=head, site=html.escape(site), toc=toc,
        toc_hidden='' if '<li>' in toc else ' hidden',
        body=re.sub(r'<pre>(\d+)</pre>', lambda m: page.code[int(m[1])], str(page.body)),
        banner=config['format']['html']['include-before-body'][0]['text'],
        footer=config['website']['page-footer']['center'], **navigation(page, pages, config))
    for name, content in page.files.items(): write(out/name, content)
    write(out/page.url, Template((ASSETS/'page.html').read_text(encoding='utf-8')).substitute(fields).encode())

def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

def build(out):
    "Render every page into `out`; returns the pages."
    config, pages = yaml.safe_load(quarto_yml()), [read_page(s) for s in sources()]
    if out.exists() and any(out.iterdir()) and not (out/'search_index.js').exists():
        raise SystemExit(f'{out} is not empty and not a site of this renderer; choose another --out')
    shutil.rmtree(out, ignore_errors=True)
    write(out/'search_index.js', b'') # the sign of this renderer comes first, so that a killed build can be made again
    for folder in (NBS/'images', ROOT/'figures'):
        if folder.is_dir(): shutil.copytree(folder, out/folder.name, dirs_exist_ok=True)
    for name in ('site.js', 'site.css'): write(out/name, (ASSETS/name).read_bytes())
    write(out/'site.css', (ASSETS/'site.css').read_bytes() + (NBS/'styles.css').read_bytes())
    if any(p.plotly for p in pages):
        import plotly
        write(out/'plotly.min.js', (Path(plotly.__file__).parent/'package_data'/'plotly.min.js').read_bytes())
    entries = []
    for page in pages:
        write_page(page, to_html(page), pages, config, out)
        entries += search_entries(page)
    write(out/'search_index.js', f'window.searchIndex = {json.dumps(entries, indent=0)};\n'.encode())
    return pages


# Checks

def check(out, pages):
    "[problem] of all pages: links and anchors, alt texts, outside resources, citations, syntax that only Quarto knows."
    listed = {href for _, entries in sidebar() for href, _ in entries}
    found = {p.source.as_posix() for p in pages}
    problems = [f'nbs/sidebar.yml: {href} does not exist' for href in sorted(listed - found)]
    problems += [f'nbs/sidebar.yml: {href} is not listed' for href in sorted(found - listed)]
    texts = {p.url: (out/p.url).read_text(encoding='utf-8') for p in pages}
    prose = {url: re.sub('<pre.*?</pre>', '', text, flags=re.DOTALL) for url, text in texts.items()}
    soups = {url: BeautifulSoup(text, 'html.parser') for url, text in prose.items()}
    ids = {url: {t['id'] for t in soup.select('[id]')} for url, soup in soups.items()}
    for page in pages:
        soup, say = soups[page.url], lambda text, page=page: problems.append(f'nbs/{page.source}: {text}')
        for tag in soup.select('[href], [src]'):
            ref = tag.get('href') or tag.get('src')
            parts = urlsplit(ref)
            if parts.scheme or parts.netloc:
                if tag.name != 'a': say(f'resource from outside: {ref}')
                continue
            path = os.path.normpath(os.path.join(os.path.dirname(page.url), unquote(parts.path)))
            path, section = path if parts.path else page.url, unquote(parts.fragment)
            if not (out/path).is_file(): say(f'broken link: {ref}')
            elif section and section not in ids.get(path, {section}): say(f'no such section: {ref}')
        for img in soup.select('main img'):
            if not img.get('alt'): say(f'figure without alt text (`#| fig-alt`): {img["src"]}')
        for span in soup.select('main span.math'): say(f'formula that pandoc cannot read: {span.text}')
        for cite in soup.select('.citation strong'):
            if cite.text.endswith('?'): say(f'unknown citation: {cite.text}')
        for tag in soup.main(['code', 'script', 'math']): tag.decompose()
        for sign in (':::', '{{<', '@fig-', '@tbl-', '@sec-', '{#'):
            if sign in soup.main.text: say(f'{sign!r} was not rendered')
    return problems


def nbdev_processing():
    "What nbdev does to the cells of a page, but for what `SKIPPED` names."
    from nbdev import config, processors
    config.get_config().d.update(skip_procs=SKIPPED, recursive='True')  # subfolders hold images
    processors._hide_dirs -= {'export', 'exporti'}
    return processors.FilterDefaults()

def quarto():
    "nbdev's own way, in this process, so that its cell processing is the one that the thin renderer uses."
    from nbdev.quarto import nbdev_docs
    nbdev_processing()
    os.environ['IN_TEST'] = '1'  # nbdev then writes no _modidx.py
    if (ROOT/'figures').is_dir(): shutil.copytree(ROOT/'figures', NBS/'figures', dirs_exist_ok=True)
    (NBS/TIMES).write_text(times(), encoding='utf-8')
    try: nbdev_docs.__wrapped__(n_workers=0)
    finally:
        shutil.rmtree(NBS/'figures', ignore_errors=True)
        (NBS/TIMES).unlink()

def main(argv=None):
    parser = argparse.ArgumentParser(description='Build the website.')
    parser.add_argument('--out', type=Path, default=ROOT/'_docs', help='folder for the pages (thin renderer)')
    parser.add_argument('--check', action='store_true', help='fail on broken links and other faults (thin renderer)')
    parser.add_argument('--thin', action='store_true', help='the thin renderer even where Quarto is installed')
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    (NBS/'_quarto.yml').write_text(quarto_yml(), encoding='utf-8')
    if shutil.which('quarto') and not args.thin and not args.check: return quarto()
    out = args.out.absolute()
    pages = build(out)
    problems = check(out, pages) if args.check else []
    for problem in problems: print(problem, file=sys.stderr)
    print(f'{len(pages)} pages in {out}' + (f', {len(problems)} problems' if args.check else ''))
    return bool(problems)


if __name__ == '__main__': sys.exit(main())
