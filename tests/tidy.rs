//! The house is kept: files of one idea, floors that know nothing of the ones above, no call that stops the process or a thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const LINES_MAX: usize = 600;
/// At a file's top: why it is longer.
const LONG_ON_PURPOSE: &str = "Long on purpose:";

/// The floors as `src/lib.rs` has them, the ground first; those of one floor know nothing of each other.
const FLOORS: [&[&str]; 8] = [
    &["support"],
    &["store", "binlog", "orchestrator", "metrics"],
    &["mysql", "archive"],
    &["ship", "replica", "source", "volume"],
    &["snapshot", "inspect", "retention"],
    &["recover"],
    &["agent"],
    &["cli"],
];
/// The configuration is read by these floors only, and speaks of the types of those.
const CONFIG_READERS: [&str; 2] = ["agent", "cli"];
const CONFIG_SPEAKS_OF: [&str; 8] = [
    "archive",
    "mysql",
    "orchestrator",
    "retention",
    "snapshot",
    "store",
    "support",
    "volume",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folders`, by its path from the root.
fn sources(folders: &[&str]) -> BTreeMap<String, String> {
    let mut folders: Vec<PathBuf> = folders.iter().map(|f| root().join(f)).collect();
    let mut sources = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                sources.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    sources
}

/// The library without its tests.
fn library() -> BTreeMap<String, String> {
    let mut library = sources(&["src"]);
    let test_files: Vec<String> = library
        .iter()
        .flat_map(|(name, text)| {
            let folder = Path::new(name).parent().unwrap().to_str().unwrap().to_owned();
            let modules = text.split("#[cfg(test)]\nmod ").skip(1);
            let files = modules
                .filter_map(|rest| rest.split_once(';'))
                .filter(|(name, _)| !name.contains('{'));
            files
                .map(move |(module, _)| format!("{folder}/{module}.rs"))
                .collect::<Vec<_>>()
        })
        .collect();
    library.retain(|name, _| !test_files.contains(name));
    for text in library.values_mut() {
        let tests = text.match_indices("#[cfg(test)]\n").find(|(at, mark)| {
            text[at + mark.len()..]
                .lines()
                .next()
                .is_some_and(|l| l.ends_with("mod tests {"))
        });
        if let Some((at, _)) = tests {
            text.truncate(at);
        }
    }
    library
}

/// The floor's name that a file belongs to.
fn floor_of(file: &str) -> &str {
    let below = file.strip_prefix("src/").unwrap();
    below.split(['/', '.']).next().unwrap()
}

/// The top-level modules of this crate that `text` names.
fn names(text: &str) -> Vec<(String, usize)> {
    let code: Vec<&str> = text
        .lines()
        .map(|line| if line.trim_start().starts_with("//") { "" } else { line })
        .collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let line = code[..at].lines().count();
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push((first_word(rest), line));
            continue;
        };
        let (mut depth, mut item) = (0, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => found.push((first_word(&std::mem::take(&mut item)), line)),
                c if depth == 0 => item.push(c),
                _ => {}
            }
        }
        found.push((first_word(&item), line));
    }
    found.retain(|(name, _)| !name.is_empty());
    found
}

fn first_word(text: &str) -> String {
    text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn height(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

#[test]
fn floors_know_nothing_of_the_ones_above() {
    let mut faults = Vec::new();
    let mut uses = 0;
    for (file, text) in library() {
        let own = floor_of(&file);
        if ["lib", "main"].contains(&own) {
            continue;
        }
        for (used, line) in names(&text) {
            uses += 1;
            let allowed = match (own, used.as_str()) {
                (own, used) if own == used => true,
                ("config", used) => CONFIG_SPEAKS_OF.contains(&used),
                (own, "config") => CONFIG_READERS.contains(&own),
                (own, used) => height(own) > height(used) && height(used).is_some(),
            };
            if !allowed {
                faults.push(format!("{file}:{line}: `{own}` may not know of `{used}`"));
            }
        }
    }
    assert!(uses > 100, "only {uses} uses were found: the parser is broken");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A module that is on no floor could be used by nobody's rule.
#[test]
fn every_module_has_a_floor() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules: Vec<&str> = lib
        .lines()
        .filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert!(modules.len() > 10);
    for module in modules {
        assert!(height(module).is_some() || module == "config", "`{module}` is on no floor");
        let doc = format!("`{module}`");
        assert!(
            module == "config" || lib.contains(&doc),
            "the doc of src/lib.rs does not say where {doc} is"
        );
    }
}

#[test]
fn files_are_of_one_idea() {
    for (file, text) in sources(&["src", "tests", "demo", "benches", "examples"]) {
        let lines = text.lines().count();
        let reason = text
            .lines()
            .take_while(|l| l.starts_with("//!"))
            .any(|l| l.contains(LONG_ON_PURPOSE));
        assert!(
            lines <= LINES_MAX || reason,
            "{file} has {lines} lines; divide it, or say `{LONG_ON_PURPOSE}` and why at its top"
        );
    }
}

#[test]
fn nothing_ends_the_process_or_blocks_a_thread() {
    let mut faults = Vec::new();
    for (file, text) in library() {
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let banned = [".unwrap()", "thread::sleep", "todo!(", "unimplemented!(", "dbg!(", "panic!("];
            // A reason that is a constant text says why it cannot happen.
            let expects = code.contains(".expect(") && !code.contains(".expect(\"");
            // Only the edge may end the process.
            let exits = code.contains("process::exit(") && floor_of(&file) != "cli";
            if expects || exits || banned.iter().any(|b| code.contains(b)) {
                faults.push(format!("{file}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// One HTTP stack and one TLS stack, with AWS and without: two of them are twice the code to trust, and to compile.
#[test]
fn the_program_has_one_hyper_and_one_rustls() {
    for features in [&[][..], &["--no-default-features"]] {
        let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args([
                "tree",
                "--offline",
                "--locked",
                "--edges",
                "normal",
                "--prefix",
                "none",
                "--format",
                "{p}",
            ])
            .args(features)
            .current_dir(root())
            .output()
            .unwrap();
        let tree = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let versions = |package: &str| {
            let mut found: Vec<&str> = tree
                .lines()
                .filter_map(|l| l.strip_prefix(package)?.strip_prefix(" v")?.split_whitespace().next())
                .collect();
            found.sort_unstable();
            found.dedup();
            found
        };
        let hypers = versions("hyper");
        assert!(
            hypers.len() == 1 && hypers.iter().all(|v| v.starts_with("1.")),
            "{features:?}: hyper {hypers:?}"
        );
        assert_eq!(versions("rustls").len(), 1, "{features:?}: rustls {:?}", versions("rustls"));
        for unwanted in ["ring", "openssl", "native-tls"] {
            assert_eq!(versions(unwanted), Vec::<&str>::new(), "{features:?}: {unwanted}");
        }
    }
}

/// The names of metrics in a text.
fn metric_names(text: &str) -> BTreeSet<String> {
    const PREFIX: &str = "mysql_pitr_";
    let ends = |rest: &str| {
        rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_'))
            .unwrap_or(rest.len())
    };
    let found = text.match_indices(PREFIX).map(|(at, _)| &text[at..at + ends(&text[at..])]);
    found.filter(|name| name.len() > PREFIX.len()).map(str::to_owned).collect()
}

/// Who is woken by a metric finds it described, and no rule or panel asks for one that does not exist.
#[test]
fn metrics_are_described_and_rules_ask_for_real_ones() {
    let code = library().remove("src/metrics.rs").unwrap();
    let names = metric_names(&code);
    assert!(names.len() > 20, "{names:?}");
    let read = |file: &str| metric_names(&fs::read_to_string(root().join(file)).unwrap());
    assert_eq!(read("docs/metrics.md"), names);
    for file in ["monitoring/alerts.yml", "monitoring/dashboard.json"] {
        let used = read(file);
        let unknown: Vec<&String> = used.difference(&names).collect();
        assert!(used.len() > 5 && unknown.is_empty(), "{file}: {unknown:?}");
    }
    let dashboard = fs::read_to_string(root().join("monitoring/dashboard.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
}
