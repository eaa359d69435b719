// {"str1": text, "str2": text} on stdin -> {"result": text} on stdout

// The value of a member that is a text, with its escapes as they are.
function member(json: string, name: string): string {
  let at = json.indexOf(`"${name}"`);
  if (at < 0) {
    process.stderr.write(`there is no ${name}`);
    process.exit(2);
  }
  at = json.indexOf('"', json.indexOf(":", at)) + 1;
  let end = at;
  while (end < json.length && json.charAt(end) != '"') end += json.charAt(end) == "\\" ? 2 : 1;
  return json.substring(at, end);
}

const buffer = new ArrayBuffer(1 << 16);
const size = process.stdin.read(buffer);
const given = String.UTF8.decode(buffer.slice(0, size));
process.stdout.write(`{"result":"${member(given, "str1")}${member(given, "str2")}"}`);
