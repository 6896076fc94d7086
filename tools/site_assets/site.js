/* Theme, search, copy and code buttons. Plain script: works from a folder (file://) as well as from a server. */
(function () {
  'use strict';
  const $ = id => document.getElementById(id), page = document.documentElement, base = page.dataset.root || '';

  $('theme').addEventListener('click', () => {
    page.dataset.theme = page.dataset.theme === 'dark' ? 'light' : 'dark';
    try { localStorage.setItem('theme', page.dataset.theme); } catch (e) { /* not remembered, still switched */ }
  });

  // On a wide screen the lists of chapters and of headings are open; on a phone they wait for a tap.
  const widths = { side: '(min-width: 64rem)', toc: '(min-width: 78rem)' };
  for (const [id, query] of Object.entries(widths)) {
    const media = matchMedia(query), box = $(id);
    const set = () => { box.open = media.matches; };
    media.addEventListener('change', set); set();
  }
  const here = document.querySelector('.side [aria-current]');
  if (here && $('side').open) $('side').scrollTop = Math.max(0, here.offsetTop - innerHeight / 2);

  const cells = document.querySelectorAll('.cell-code');
  if (cells.length) {
    $('tools-code').hidden = false;
    $('code').addEventListener('click', () => {
      $('code').textContent = document.body.classList.toggle('no-code') ? 'Show code' : 'Hide code';
    });
  }
  if (navigator.clipboard) document.querySelectorAll('div.sourceCode').forEach(box => {
    const button = document.createElement('button');
    button.className = 'copy'; button.type = 'button'; button.textContent = 'Copy';
    button.addEventListener('click', () => navigator.clipboard.writeText(box.querySelector('code').innerText)
      .then(() => { button.textContent = 'Copied'; setTimeout(() => { button.textContent = 'Copy'; }, 1500); }));
    box.append(button);
  });

  // Search: every word must occur; a word in a title counts more than one in the text.
  const input = $('search'), hits = $('hits');
  let loading = null;
  const load = () => loading = loading || new Promise(done => {
    const script = document.createElement('script');
    script.src = base + 'search_index.js'; script.onload = done; document.head.append(script);
  });
  const score = (entry, words) => {
    const title = (entry.page + ' ' + entry.heading).toLowerCase(), text = entry.text.toLowerCase();
    let sum = 0;
    for (const word of words) {
      const points = (title.includes(word) ? 10 : 0) + Math.min(5, text.split(word).length - 1);
      if (!points) return 0;
      sum += points;
    }
    return sum;
  };
  const snippet = (text, word) => {
    const at = Math.max(0, text.toLowerCase().indexOf(word) - 40);
    return (at ? '\u2026' : '') + text.slice(at, at + 120);
  };
  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    hits.replaceChildren(); hits.hidden = !words.length;
    if (!words.length) return;
    const found = window.searchIndex.map(entry => [score(entry, words), entry]).filter(pair => pair[0])
      .sort((a, b) => b[0] - a[0]).slice(0, 12);
    if (!found.length) hits.append(Object.assign(document.createElement('p'), { textContent: 'Nothing found.' }));
    for (const [, entry] of found) {
      const link = Object.assign(document.createElement('a'), { href: base + entry.url });
      link.textContent = entry.heading ? entry.page + ' \u203a ' + entry.heading : entry.page;
      link.append(Object.assign(document.createElement('small'), { textContent: snippet(entry.text, words[0]) }));
      hits.append(link);
    }
  };
  input.addEventListener('focus', load);
  input.addEventListener('input', () => load().then(show));
  document.addEventListener('keydown', event => {
    if (event.key === 'Escape') { hits.hidden = true; }
    if (event.key === '/' && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) { event.preventDefault(); input.focus(); }
  });
  document.addEventListener('click', event => { if (!event.target.closest('.search')) hits.hidden = true; });
})();
