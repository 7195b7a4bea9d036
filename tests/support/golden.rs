//! What the program says when something is wrong, word for word, in `tests/errors.txt`: to be read by people, and kept.
//!
//! `MYSQL_PITR_BLESS=1` writes what is said now; read the difference as somebody would who was woken at three in the morning.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/errors.txt");
const HEADING: &str = "\n# ";
const PREFACE: &str = "What the program says when something is wrong; compared, and rewritten with MYSQL_PITR_BLESS=1, by tests/support/golden.rs.\n";
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// One writer at a time, and nobody reads what is half written.
static WRITING: Mutex<()> = Mutex::new(());

/// Compares the error that `output` ends with, in which `names` stand for themselves in place of what they are now.
pub fn assert_error(case: &str, output: &str, names: &[(&str, &str)]) {
    let start = output
        .find("error: ")
        .unwrap_or_else(|| panic!("{case}: no error in:\n{output}"));
    assert_text(case, &output[start..], names);
}

/// Compares a whole text.
pub fn assert_text(case: &str, text: &str, names: &[(&str, &str)]) {
    let mut text = text.trim_end().to_owned();
    for (now, name) in names.iter().filter(|(now, _)| !now.is_empty()) {
        text = text.replace(now, name);
    }
    let said = without_how(&normal(&text));
    let _guard = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut known = read();
    if env::var_os("MYSQL_PITR_BLESS").is_some() {
        known.insert(case.to_owned(), said);
        let sections = known.iter().map(|(case, text)| format!("{HEADING}{case}\n{text}\n"));
        fs::write(FILE, PREFACE.to_owned() + &sections.collect::<String>()).unwrap();
        return;
    }
    let expected = known.get(case).map_or("", String::as_str);
    assert!(
        said == expected,
        "`{case}` is not what {} says (MYSQL_PITR_BLESS=1 rewrites it). Expected:\n{expected}\nGot:\n{said}",
        Path::new(FILE).display()
    );
}

fn read() -> BTreeMap<String, String> {
    let text = fs::read_to_string(FILE).unwrap_or_default();
    let sections = text.split(HEADING).skip(1);
    sections
        .filter_map(|s| s.split_once('\n'))
        .map(|(case, text)| (case.to_owned(), text.trim_end().to_owned()))
        .collect()
}

/// By what a codec notices one flipped bit, or a parser a cut end, depends on which bit it was and on what is recorded there.
fn without_how(text: &str) -> String {
    const DAMAGED: [&str; 2] = [
        "is damaged or cannot be read to its end: ",
        "is not a record of this archive: EOF while parsing ",
    ];
    let line = |line: &str| {
        let cut = DAMAGED
            .iter()
            .find_map(|damaged| Some((line.split_once(damaged)?.0, damaged)));
        cut.map_or_else(|| line.to_owned(), |(before, damaged)| format!("{before}{damaged}HOW"))
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The text with everything that differs from run to run replaced by a word for it.
fn normal(text: &str) -> String {
    // `#` stands for a digit, `x` for a hexadecimal one.
    let mut patterns: Vec<(String, &str)> = vec![
        ("########T######.######Z-xxxxxxxx".into(), "SNAPSHOT"),
        ("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx".into(), "UUID"),
        ("####-##-##T##:##:##.######Z".into(), "TIME"),
        ("################-################".into(), "START-END"),
        ("###################".into(), "LABEL"),
        ("x".repeat(64), "SHA256"),
        ("x".repeat(32), "RANDOM"),
        (format!("vol-{}", "x".repeat(17)), "VOLUME"),
        (format!("snap-{}", "x".repeat(17)), "EC2-SNAPSHOT"),
    ];
    for month in MONTHS {
        patterns.push((format!("####/{month}/##/"), "DAY/"));
        patterns.push((format!("####/{month}/#/"), "DAY/"));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some((pattern, word)) = patterns.iter().find(|(p, _)| matches(p, rest)) {
            out.push_str(word);
            rest = &rest[pattern.len()..];
        } else if let Some(id) = rest.strip_prefix("(request ") {
            out.push_str("(request ID");
            rest = &id[id.find(')').unwrap_or(id.len())..];
        } else if let Some(len) = size_len(rest).filter(|_| !out.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '.')) {
            out.push_str("SIZE");
            rest = &rest[len..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn matches(pattern: &str, text: &str) -> bool {
    let mut bytes = text.bytes();
    let fits = |p: u8, b: u8| match p {
        b'#' => b.is_ascii_digit(),
        b'x' => b.is_ascii_hexdigit(),
        _ => p == b,
    };
    pattern.bytes().all(|p| bytes.next().is_some_and(|b| fits(p, b)))
}

/// The length of a size such as `1.5 GiB` at the beginning of `text`.
fn size_len(text: &str) -> Option<usize> {
    let number = text.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
    let units = [" B", " KiB", " MiB", " GiB", " TiB"];
    units
        .iter()
        .find(|unit| text[number..].starts_with(**unit))
        .map(|unit| number + unit.len())
}
