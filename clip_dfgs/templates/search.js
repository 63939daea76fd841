// The search page: it asks POST /search, GET /stats and GET /image/DIGEST, and writes names as text, never as HTML.
const $ = (selector, of = document) => of.querySelector(selector)
const PAGE = 60
let asked = {}, found = [], k = PAGE, turn = 0, images = 0, open = -1
const marked = new Map()                     // path -> answer

const make = (tag, words = '', more = {}) => Object.assign(document.createElement(tag), {textContent: words}, more)
const chosen = box => [...box.querySelectorAll('input:checked')].map(x => x.value)
const address = (r, original = false) => `image/${r.digest}${original ? '?original=true' : ''}`

function say(words, wrong = false) {
  $('#said').textContent = words
  $('#said').classList.toggle('wrong', wrong)
}

async function ask() {
  const mine = ++turn, body = new FormData()
  for (const [name, value] of Object.entries(asked)) body.append(name, value)
  for (const camera of chosen($('#cameras'))) body.append('camera', camera)
  for (const domain of chosen($('#domains'))) body.append('domain', domain)
  body.append('k', k)
  try {
    const answer = await fetch('search', {method: 'POST', body})
    const told = await answer.json()
    if (mine !== turn) return                // a later question was asked meanwhile
    if (!answer.ok) return say(typeof told.detail === 'string' ? told.detail : 'This cannot be asked.', true)
    say(told.note)
    images = told.images
    $('#grown').hidden = true
    draw(told.answers)
  } catch (e) { if (mine === turn) say(`No answer: is the service still running? (${e.message})`, true) }
}

function fresh(question) {                   // a new question begins with the first answers
  asked = question
  k = PAGE
  scrollTo({top: 0})
  return ask()
}

function draw(answers) {
  const same = found.length && found.every((r, i) => answers[i] && answers[i].path === r.path && answers[i].score === r.score)
  if (!same) $('#found').replaceChildren()
  $('#found').append(...answers.slice(same ? found.length : 0).map(tile))
  found = answers
  $('#more').hidden = found.length < k
  showMarks()
}

function tile(r) {
  const figure = make('figure'), button = make('button', '', {type: 'button', title: r.file})
  button.append(make('img', '', {src: address(r), alt: r.file, loading: 'lazy'}))
  button.onclick = () => view(found.findIndex(x => x.path === r.path))
  const box = make('input', '', {type: 'checkbox', title: 'mark'})
  box.setAttribute('aria-label', `mark ${r.file}`)
  box.onchange = () => mark(r, box.checked)
  const words = make('figcaption'), first = make('span', r.identity || `${r.rank}`)
  if (r.score !== null) first.prepend(make('span', r.score.toFixed(3), {className: 'score'}))
  words.append(first, make('span', [r.camera, r.domain].filter(Boolean).join(' · ')), make('span', r.file, {title: r.file}))
  figure.append(button, box, words)
  figure.dataset.path = r.path
  return figure
}

function mark(r, on) {
  if (on) marked.set(r.path, r)
  else marked.delete(r.path)
  showMarks()
}

function showMarks() {
  for (const figure of document.querySelectorAll('figure')) {
    const on = marked.has(figure.dataset.path)
    figure.classList.toggle('marked', on)
    $('input', figure).checked = on
  }
  $('#marked').hidden = !marked.size
  $('#marked span').textContent = `${marked.size} marked`
  if (found[open]) $('#mark').textContent = marked.has(found[open].path) ? 'Unmark' : 'Mark'
}

function view(i) {
  if (!found[i]) return
  open = i
  const r = found[i], facts = {'file name': r.file, identity: r.identity, camera: r.camera, domain: r.domain,
    score: r.score === null ? '' : r.score.toFixed(4), rank: `${r.rank}`, path: r.path}
  $('#large > img').src = address(r, true)
  $('#large > img').alt = r.file
  $('#original').href = address(r, true)
  $('#large dl').replaceChildren(...Object.entries(facts).filter(([, value]) => value)
    .flatMap(([name, value]) => [make('dt', name), make('dd', value)]))
  showMarks()
  if (!$('#large').open) $('#large').showModal()
}

function csv() {
  const names = ['path', 'identity', 'camera', 'domain', 'score', 'digest']
  const cell = value => `"${String(value ?? '').replaceAll('"', '""')}"`
  const lines = [names, ...[...marked.values()].map(r => names.map(name => r[name]))]
  const blob = new Blob([lines.map(line => line.map(cell).join(',') + '\r\n').join('')], {type: 'text/csv'})
  const link = make('a', '', {href: URL.createObjectURL(blob), download: 'marked.csv'})
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
}

function takeImage(file) {
  if (!file) return
  $('#text').value = ''
  $('#asked').src = URL.createObjectURL(file)
  $('#asked').hidden = false
  $('#drop span').textContent = file.name
  $('#file').value = ''
  fresh({image: file})
}

function noImage() {
  $('#asked').hidden = true
  $('#drop span').textContent = 'Image …'
}

function choices(id, names) {
  const box = $(id), all = $('summary', box).textContent
  box.hidden = names.length < 2
  $('div', box).replaceChildren(...names.map(name => {
    const label = make('label')
    label.append(make('input', '', {type: 'checkbox', value: name}), ' ' + name)
    return label
  }))
  box.onchange = () => { $('summary', box).textContent = chosen(box).join(', ') || all; k = PAGE; ask() }
}

async function look() {                      // did `embed` add images meanwhile?
  const answer = await fetch('stats').catch(() => null)
  if (!answer || !answer.ok) return
  const now = (await answer.json()).images
  $('#grown').hidden = now === images
  $('#grown span').textContent = `The gallery has changed: ${now.toLocaleString('en')} images.`
}

$('#query').onsubmit = event => {
  event.preventDefault()
  const text = $('#text').value.trim()
  if (text) noImage()
  fresh(text ? {text} : asked)
}
$('#file').onchange = () => takeImage($('#file').files[0])
document.ondragover = event => event.preventDefault()
document.ondrop = event => { event.preventDefault(); takeImage(event.dataTransfer.files[0]) }
$('#newest').onclick = () => { $('#text').value = ''; noImage(); fresh({}) }
$('#grown button').onclick = () => ask()
$('#more').onclick = () => { k += PAGE; ask() }
$('#export').onclick = csv
$('#unmark').onclick = () => { marked.clear(); showMarks() }
$('#close').onclick = () => $('#large').close()
$('#large').onclick = event => { if (event.target === $('#large')) $('#large').close() }
$('#mark').onclick = () => mark(found[open], !marked.has(found[open].path))
$('#before').onclick = () => view(open - 1)
$('#after').onclick = () => view(open + 1)
$('#large').onkeydown = event => view(open + ({ArrowLeft: -1, ArrowRight: 1}[event.key] ?? 0))
$('#again').onclick = () => {
  const r = found[open]
  $('#large').close()
  $('#text').value = ''
  $('#asked').src = address(r)
  $('#asked').hidden = false
  $('#drop span').textContent = r.file
  fresh({like: r.digest})
}

const told = await (await fetch('stats')).json()
choices('#cameras', told.cameras)
choices('#domains', told.domains)
if (!told.text) { $('#text').disabled = true; $('#text').placeholder = 'this model reads images only' }
await ask()
setInterval(look, 15_000)
