//! Least privilege is kept: what the program asks of AWS is in the policy of the role that asks it, and nothing beyond.
//!
//! It reads the sources, the table of docs/iam.md, and the policies of terraform/. AWS itself says whether the table's actions are the right
//! ones; that nobody forgets one, or leaves one behind, is what is held here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use mysql_pitr::archive::{
    codec::Codec,
    keys::{self, BinlogPlace, SegmentRange, Shard},
};

const TABLE: &str = "docs/iam.md";
/// The roles, and where their policies are.
const ROLES: [(&str, &str); 3] = [
    ("agent", "terraform/modules/agent-role"),
    ("recovery", "terraform/modules/recovery-role"),
    ("prune", "terraform/modules/prune-role"),
];
/// What they have in common. A role has each of its documents whose variable it gives.
const SHARED: &str = "terraform/modules/role";
const SHARED_DOCUMENTS: [(&str, &str); 2] = [("shards", "shards"), ("ebs_keys", "ebs_key_arns")];
const BUCKET_POLICY: &str = "terraform/modules/bucket/policy.tf";

/// What operations of AWS begin with. Operations take no argument, for their fields are set on what they return.
const VERBS: [&str; 35] = [
    "abort",
    "associate",
    "attach",
    "cancel",
    "complete",
    "copy",
    "create",
    "delete",
    "describe",
    "detach",
    "disable",
    "disassociate",
    "enable",
    "generate",
    "get",
    "head",
    "import",
    "list",
    "lock",
    "modify",
    "put",
    "reboot",
    "register",
    "release",
    "replace",
    "reset",
    "restore",
    "run",
    "select",
    "start",
    "stop",
    "terminate",
    "unlock",
    "update",
    "upload",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Every file below `folder` that ends with `extension`, by its path from the root.
fn files(folder: &str, extension: &str) -> BTreeMap<String, String> {
    let mut folders = vec![root().join(folder)];
    let mut found = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

/// The files that speak to AWS: those that name its SDK, and the modules below them.
fn aws_sources() -> BTreeMap<String, String> {
    const SDK: &str = "aws_sdk_";
    let mut sources = files("src", "rs");
    let folders: Vec<String> = sources
        .iter()
        .filter(|(_, text)| text.contains(SDK))
        .map(|(file, _)| format!("{}/", file.trim_end_matches("/mod.rs").trim_end_matches(".rs")))
        .collect();
    sources.retain(|file, text| text.contains(SDK) || folders.iter().any(|folder| file.starts_with(folder)));
    for text in sources.values_mut() {
        if let Some((code, _)) = text.split_once("#[cfg(test)]\nmod tests {") {
            *text = code.to_owned();
        }
    }
    sources
}

/// The operations that `code` calls, each with its line.
fn operations(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (i, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        for (at, _) in line.match_indices("()") {
            let start = line[..at]
                .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .map_or(0, |before| before + 1);
            let (name, is_method) = (&line[start..at], line[..start].ends_with('.'));
            // `create_time` and its like are fields of answers.
            let is_operation = name
                .split_once('_')
                .is_some_and(|(verb, rest)| VERBS.contains(&verb) && !rest.ends_with("time"));
            if is_method && is_operation {
                found.push((name.to_owned(), i + 1));
            }
        }
    }
    found
}

#[test]
fn operations_are_found_in_code() {
    let code = "let request = self\n    .client\n    .put_object()\n    .bucket(&name);\nec2.describe_snapshots().send()\n\
                // .delete_object()\nlet at = volume.create_time();\nget_object(); x.get_mut(1); list.len();";
    assert_eq!(
        operations(code),
        [("put_object".to_owned(), 3), ("describe_snapshots".to_owned(), 5)]
    );
}

/// A row of the table.
#[derive(Debug)]
struct Row {
    call: String,
    actions: BTreeSet<String>,
    roles: BTreeSet<String>,
    /// Nothing makes the call yet.
    is_planned: bool,
}

fn table() -> Vec<Row> {
    let text = read(TABLE);
    let rows: Vec<Row> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 4, "{TABLE}: a row has four cells: {line}");
            Row {
                call: cells[0].trim_matches('`').to_owned(),
                actions: cells[1].split_whitespace().map(|a| a.trim_matches('`').to_owned()).collect(),
                roles: cells[2].split(", ").map(str::to_owned).collect(),
                is_planned: cells[3].ends_with("(planned)"),
            }
        })
        .collect();
    assert!(rows.len() >= 8, "{TABLE}: {rows:?}");
    let known: BTreeSet<&str> = ROLES.iter().map(|(role, _)| *role).collect();
    for row in &rows {
        let strange: Vec<&String> = row.roles.iter().filter(|role| !known.contains(role.as_str())).collect();
        assert!(strange.is_empty(), "{TABLE}: {}: no such role: {strange:?}", row.call);
        assert!(
            row.actions.iter().all(|a| a.contains(':')),
            "{TABLE}: {}: {:?}",
            row.call,
            row.actions
        );
    }
    rows
}

/// A statement of an `aws_iam_policy_document`.
#[derive(Debug)]
struct Statement {
    document: String,
    sid: String,
    denies: bool,
    actions: Vec<String>,
    resources: String,
    text: String,
}

/// The strings between quotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Of Terraform as `terraform fmt` writes it: a block ends where its indentation comes back.
fn statements(file: &str, text: &str) -> Vec<Statement> {
    const DOCUMENT: &str = "data \"aws_iam_policy_document\" ";
    let mut found = Vec::new();
    let mut document = None;
    let mut block: Option<(usize, Vec<&str>)> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        if let Some(name) = line.strip_prefix(DOCUMENT) {
            document = Some(quoted(name).remove(0));
        } else if line == "}" {
            document = None;
        }
        let Some(document) = &document else { continue };
        match &mut block {
            None if ["statement {", "content {"].contains(&line.trim()) => block = Some((indent, Vec::new())),
            Some((opened, lines)) if line.trim() == "}" && indent == *opened => {
                found.push(statement(document, lines));
                block = None;
            }
            Some((_, lines)) => lines.push(line),
            None => {}
        }
    }
    assert!(block.is_none(), "{file}: a statement has no end");
    found
}

fn statement(document: &str, lines: &[&str]) -> Statement {
    let of = |attribute: &str| -> String {
        let is_it = |line: &&&str| line.split('=').next().unwrap().trim() == attribute && line.contains('=');
        let Some(at) = lines.iter().position(|line| is_it(&line)) else {
            return String::new();
        };
        let value = lines[at].split_once('=').unwrap().1.trim();
        if value != "[" {
            return value.to_owned();
        }
        let rest = lines[at + 1..].iter().take_while(|line| line.trim() != "]");
        rest.map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    };
    Statement {
        document: document.to_owned(),
        sid: quoted(&of("sid")).pop().unwrap_or_default(),
        denies: of("effect") == "\"Deny\"",
        actions: quoted(&of("actions")),
        resources: of("resources"),
        text: lines.join("\n"),
    }
}

/// What the call of [`SHARED`] in these files gives it.
fn shared_call(folder: &str, files: &BTreeMap<String, String>) -> String {
    const CALL: &str = "\nmodule \"role\" {\n  source = \"../role\"\n";
    let mut calls = files.values().filter_map(|text| text.split_once(CALL)?.1.split_once("\n}\n"));
    let (call, _) = calls.next().unwrap_or_else(|| panic!("{folder} does not use {SHARED}"));
    assert!(calls.next().is_none(), "{folder} uses {SHARED} twice");
    call.to_owned()
}

/// What a role's policies say; whom it trusts is another matter.
fn role_statements(folder: &str) -> Vec<Statement> {
    let own = files(folder, "tf");
    let call = shared_call(folder, &own);
    let gives = |variable: &str| {
        let mut lines = call.lines();
        lines.any(|line| line.split_once('=').is_some_and(|(name, _)| name.trim() == variable))
    };
    let mut found: Vec<Statement> = own.iter().flat_map(|(file, text)| statements(file, text)).collect();
    for s in &found {
        let attached = ["", "[0]"].map(|at| format!("data.aws_iam_policy_document.{}{at}.json", s.document));
        assert!(
            attached.iter().any(|a| call.contains(a)),
            "{folder}: {} is in no policy",
            s.document
        );
    }
    for (file, text) in &files(SHARED, "tf") {
        let shared = statements(file, text).into_iter().filter(|s| s.document != "trust");
        found.extend(shared.filter(|s| {
            let variable = SHARED_DOCUMENTS.iter().find(|(document, _)| *document == s.document);
            gives(
                variable
                    .unwrap_or_else(|| panic!("{file}: {} has no variable here", s.document))
                    .1,
            )
        }));
    }
    assert!(found.len() >= 3, "{folder}: {found:?}");
    found
}

/// A new call gets a row, and with it an action in a policy.
#[test]
fn every_call_is_in_the_table() {
    let rows = table();
    let mut faults = Vec::new();
    let mut called = BTreeSet::new();
    for (file, code) in aws_sources() {
        for (call, line) in operations(&code) {
            if !rows.iter().any(|row| row.call == call) {
                faults.push(format!(
                    "{file}:{line}: `{call}` has no row in {TABLE}: add one, with the IAM actions that it needs and the roles that make it, \
                     then the actions to terraform/modules/<role>-role"
                ));
            }
            called.insert(call);
        }
    }
    assert!(
        called.contains("put_object") && called.len() >= 8,
        "the parser is broken: {called:?}"
    );
    for row in &rows {
        if !row.is_planned && !called.contains(&row.call) {
            faults.push(format!(
                "{TABLE}: nothing in src calls `{}`: remove the row, and its actions from the policies",
                row.call
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_role_may_do_what_it_needs_and_nothing_beyond() {
    let rows = table();
    let mut faults = Vec::new();
    for (role, folder) in ROLES {
        let mine: Vec<&Row> = rows.iter().filter(|row| row.roles.contains(role)).collect();
        let statements = role_statements(folder);
        let allowed: BTreeSet<&String> = statements.iter().filter(|s| !s.denies).flat_map(|s| &s.actions).collect();
        for row in &mine {
            for action in row.actions.iter().filter(|a| !allowed.contains(a)) {
                faults.push(format!("{folder} lacks {action}, which `{}` needs", row.call));
            }
        }
        for action in &allowed {
            if !mine.iter().any(|row| row.actions.contains(*action)) {
                faults.push(format!(
                    "{folder} allows {action}, which no call of the {role} needs by {TABLE}"
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_role_reaches_beyond_its_shard() {
    for (role, folder) in ROLES {
        for s in role_statements(folder) {
            let name = format!("{folder}: {} of {}", s.sid, s.document);
            assert!(!s.sid.is_empty() && !s.denies && !s.actions.is_empty(), "{name}: {s:?}");
            assert!(!s.text.contains("not_actions") && !s.text.contains("not_resources"), "{name}");
            for action in &s.actions {
                assert!(!action.contains('*'), "{name}: {action}");
                let is_bounded = match action.split_once(':').unwrap() {
                    // By a prefix, in the ARN or as a condition.
                    // Says nothing of any object.
                    ("s3", "GetBucketObjectLockConfiguration") => true,
                    // A host that prunes writes nothing but what it puts aside.
                    ("s3", "PutObject") if role == "prune" => s.resources.contains("shard}/pruned/*"),
                    ("s3", "ListBucket") => s.text.contains("\"s3:prefix\"") && s.text.contains("shard}/*\""),
                    ("s3", _) => {
                        s.resources.contains("shard}/")
                            || ["${local.objects}/", "${local.replicas}/"]
                                .iter()
                                .any(|r| s.resources.contains(r))
                    }
                    ("kms", "CreateGrant") => s.text.contains("kms:GrantIsForAWSResource"),
                    ("kms", _) => s.text.contains("kms:ViaService"),
                    ("ec2", describe) if describe.starts_with("Describe") => s.text.contains("\"ec2:Region\""),
                    // Only what is being made can be given a tag.
                    ("ec2", "CreateTags") => s.text.contains("\"ec2:CreateAction\""),
                    ("ec2", _) => {
                        s.text.contains("\"ec2:ResourceTag/mysql-pitr:shard\"")
                            || s.text.contains("\"aws:RequestTag/mysql-pitr:shard\"")
                    }
                    _ => false,
                };
                assert!(
                    is_bounded,
                    "{name}: {action} is bounded by neither prefix, tag, region nor service"
                );
                let everything = s.resources.contains("\"*\"");
                assert!(
                    !everything || action.starts_with("ec2:Describe"),
                    "{name}: {action} on every resource"
                );
                // Locks are lengthened only, and not for ever; nothing else that touches what is stored.
                let is_dangerous = match action.strip_prefix("s3:") {
                    Some("DeleteObject") => role != "prune",
                    Some("PutObjectRetention") => !s.text.contains("\"s3:object-lock-remaining-retention-days\""),
                    Some(other) => {
                        !["Get", "List"].iter().any(|reads| other.starts_with(reads))
                            && !["AbortMultipartUpload", "PutObject"].contains(&other)
                    }
                    None => false,
                };
                assert!(!is_dangerous, "{name}: {action}");
            }
        }
    }
}

/// `*` is any number of any characters, `?` one of them, as in IAM's resources.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => matches(&pattern[1..], text) || (!text.is_empty() && matches(pattern, &text[1..])),
        (Some(p), Some(c)) if *p == b'?' || p == c => matches(&pattern[1..], &text[1..]),
        _ => false,
    }
}

/// i2: the bucket refuses what the agent never does: writing without a condition, and over what is written once. What the agent does it takes.
#[test]
fn i2_the_bucket_takes_every_key_once_and_changes_of_records_only() {
    let statements = statements(BUCKET_POLICY, &read(BUCKET_POLICY));
    assert!(
        statements.iter().all(|s| s.denies),
        "the bucket's policy allows nothing: {statements:?}"
    );
    let find = |sid: &str| statements.iter().find(|s| s.sid == sid).unwrap_or_else(|| panic!("no {sid}"));
    let conditional = find("OnlyConditionalWrites");
    for key in ["s3:if-none-match", "s3:if-match", "s3:ObjectCreationOperation"] {
        assert!(
            conditional.text.contains(&format!("\"{key}\"")),
            "{key}: {}",
            conditional.text
        );
    }
    let once = find("WriteHistoryOnce");
    assert!(!once.text.contains("\"s3:if-match\""), "{}", once.text);
    let patterns = quoted(&once.resources);
    assert!(patterns.len() >= 4, "{patterns:?}");

    let shard = Shard::try_from("shop".to_owned()).unwrap();
    let place = BinlogPlace {
        server_uuid: "9d74852a-830d-11ea-b87b-0ac50996c5a3".parse().unwrap(),
        label_ns: 1_617_235_403_939_395_577,
        name: "mysql-bin.005075".into(),
    };
    let id = "20261121T114450.356417Z-9db91b08";
    let range = SegmentRange { start: 0, end: 4865 };
    let written_once = [
        place.sealed_key(&shard, Codec::Zstd),
        place.manifest_key(&shard, Codec::Zstd),
        place.opening_key(&shard),
        place.segment_key(&shard, range, Codec::Gzip),
        keys::timeline_key(&shard, 1),
        keys::snapshot_data_key(&shard, id, Codec::None),
    ];
    let rewritten = [keys::snapshot_key(&shard, id), keys::lease_key(&shard, id)];
    // A prefix, and a shard, that look like a year.
    for prefix in ["", "mysql/", "2026/"] {
        let is_once = |key: &str| {
            let name = format!("arn/{prefix}{key}");
            let pattern = |p: &String| {
                p.replace("${aws_s3_bucket.archive.arn}", "arn")
                    .replace("${local.prefix}", prefix)
            };
            patterns.iter().any(|p| matches(pattern(p).as_bytes(), name.as_bytes()))
        };
        for key in &written_once {
            assert!(
                is_once(key),
                "{prefix}{key} is written once, and the bucket's policy lets it be replaced"
            );
        }
        for key in &rewritten {
            assert!(!is_once(key), "{prefix}{key} changes, and the bucket's policy refuses it");
            assert!(
                !is_once(&key.replace("shop/", "2026/")),
                "{prefix}{key} of a shard that is called 2026"
            );
        }
    }
}
