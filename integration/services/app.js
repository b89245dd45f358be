// Allocates, collects, compiles, writes files, and has a thread that does the same;
// answers what it has found wrong, and how often it has done what.
const { Worker, isMainThread, parentPort } = require('worker_threads');
const crypto = require('crypto'), fs = require('fs'), http = require('http'), zlib = require('zlib');
const sum = data => crypto.createHash('sha1').update(data).digest('hex');
const kept = new Map();

// Replaces one of 300 pieces of data, and looks whether the old one is whole.
function piece(wrong) {
	const key = crypto.randomInt(300), old = kept.get(key);
	if (old && sum(old.data) !== old.sum) wrong('data');
	const data = crypto.randomBytes(1 + crypto.randomInt(20000));
	kept.set(key, { data, sum: sum(data) });
}

function worker() {
	piece(what => parentPort.postMessage(what));
	parentPort.postMessage('');
	setTimeout(worker, 1);
}

function main() {
	const wrong = [], count = { ticks: 0, rounds: 0, thread: 0, files: 0, archives: 0 };
	const say = what => wrong.push(what);
	new Worker(__filename).on('message', what => what ? say(what) : count.thread++);
	setInterval(() => count.ticks++, 10);
	setInterval(() => {
		piece(say);
		const n = ++count.rounds, f = new Function('a', `return a * ${n} + 1`);
		for (let i = 0; i < 1000; i++) if (f(i) !== i * n + 1) say('code');
	}, 2);
	const file = () => fs.writeFile('/data/file', String(count.files), () =>
		fs.readFile('/data/file', 'utf8', (error, text) => {
			if (error || text !== String(count.files)) say(`file ${error} ${text}`);
			count.files++;
			setTimeout(file, 1);
		}));
	const archive = () => zlib.gzip(crypto.randomBytes(20000), (error, packed) =>
		zlib.gunzip(packed, (error, data) => {
			if (error || data.length !== 20000) say(`archive ${error}`);
			count.archives++;
			setTimeout(archive, 1);
		}));
	file();
	archive();
	process.on('uncaughtException', error => say(String(error)));
	http.createServer((request, answer) => answer.end(JSON.stringify({ wrong, ...count }))).listen('/data/socket');
}

isMainThread ? main() : worker();
