//! Finding a transaction in the archive by what it says or touches: the plain first form, which reads every binlog that
//! may hold it.

use serde::Serialize;

use crate::{
    archive::{
        listing::{Archive, Form, StoredBinlog},
        path::Path,
        reader::{DamagedSeal, Flow, visit},
        records::{Manifest, TABLES_MAX},
        survey::{Fault, Subject},
    },
    binlog::{
        event::{kind, parse_query, parse_table_map},
        gtid::Gtid,
        payload::Unfolder,
        transaction::{Tracker, Transaction},
    },
    support::{clock, hint::OrHint, progress::Progress},
};

/// A statement's text is cut off behind this in what is found.
const STATEMENT_CHARS_SHOWN: usize = 300;

/// What to look for; what is None matches everything.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// A part of a statement's text, in any case.
    pub statement: Option<String>,
    /// `schema.table` that rows were changed in.
    pub table: Option<String>,
    /// Commit times, µs since the epoch.
    pub since_us: Option<i64>,
    pub until_us: Option<i64>,
}

/// A transaction that matches.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    pub gtid: Gtid,
    pub committed_at: String,
    pub binlog: String,
    pub position: u64,
    pub timeline: u32,
    pub server_uuid: uuid::Uuid,
    /// Statements, and the tables that rows were changed in.
    pub statements: Vec<String>,
    pub tables: Vec<String>,
}

/// What a search came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// In the order of the history.
    pub found: Vec<Found>,
    /// What is missing or cannot be read: where nothing stands in for it, matching transactions may be missing.
    pub warnings: Vec<String>,
}

/// Everything on the current path that matches. What is missing or cannot be read is named, and the rest is searched.
///
/// # Errors
/// Where the store fails, where the current path is not known, and where a binlog turns out to be damaged while it is read and its segments
/// do not stand in for it.
pub async fn search(archive: &Archive, question: &Question, progress: &Progress) -> anyhow::Result<Outcome> {
    let survey = archive.survey().await?;
    if let Some(fault) = survey.fault_of_tip() {
        return Err(fault.error());
    }
    let path = Path::find(&survey.timelines, None).hint("check shard and [store] url in the configuration")?;
    let is_of_binlog = |subject: &Subject| matches!(subject, Subject::Binlog { .. });
    let faults = survey.faults.iter().filter(|f| is_of_binlog(&f.subject));
    let mut warnings: Vec<String> = faults.map(ToString::to_string).collect();
    let is_whole = |b: &StoredBinlog| matches!(b.form, Form::Tail(_)) || survey.fault_of_binlog(b.place()).is_none();
    let mut binlogs: Vec<StoredBinlog> = survey.binlogs.iter().filter(|b| is_whole(b)).cloned().collect();
    binlogs.retain(|b| path.inherited(b.opening.timeline).is_some() && may_match(b, question));
    binlogs.sort_by_key(|b| (b.opening.timeline, b.order()));
    let mut found = Vec::new();
    progress.phase("searching");
    for (i, binlog) in binlogs.iter().enumerate() {
        progress.update(|| format!("binlog {} of {}, {} found", i + 1, binlogs.len(), found.len()));
        if may_touch(archive, binlog, question.table.as_ref()).await? {
            let found_before = found.len();
            if let Err(e) = one(archive, binlog, &path, question, &mut found).await {
                found.truncate(found_before);
                let tail = instead(archive, binlog, e, &mut warnings).await?;
                one(archive, &tail, &path, question, &mut found).await?;
            }
        }
    }
    Ok(Outcome { found, warnings })
}

/// The segments of a sealed binlog whose object is what `error` is about, if they are all there.
async fn instead(
    archive: &Archive,
    binlog: &StoredBinlog,
    error: anyhow::Error,
    warnings: &mut Vec<String>,
) -> anyhow::Result<StoredBinlog> {
    if DamagedSeal::of(&error).is_none() {
        return Err(error);
    }
    let tail = archive.by_segments(binlog).await?;
    if tail.bytes() < binlog.bytes() {
        return Err(error);
    }
    warnings.push(Fault::of_replaced(binlog.place().clone(), tail.bytes(), None, &error).to_string());
    Ok(tail)
}

/// What a manifest rules out without reading the binlog.
fn may_match(binlog: &StoredBinlog, question: &Question) -> bool {
    let Form::Sealed(manifest) = &binlog.form else { return true };
    let too_early = question
        .since_us
        .is_some_and(|since| manifest.commit_us_max.is_some_and(|max| max < since));
    let too_late = question
        .until_us
        .is_some_and(|until| manifest.commit_us_min.is_some_and(|min| min > until));
    !(too_early || too_late)
}

/// As [`may_match`], by the tables. A survey leaves them out, for all of them would fill the memory.
async fn may_touch(archive: &Archive, binlog: &StoredBinlog, table: Option<&String>) -> anyhow::Result<bool> {
    let (Some(table), Form::Sealed(manifest)) = (table, &binlog.form) else {
        return Ok(true);
    };
    let key = binlog.place().manifest_key(&archive.shard, manifest.codec);
    let tables = archive.record::<Manifest>(&key).await?.0.tables;
    Ok(tables.len() >= TABLES_MAX || tables.contains_key(table))
}

async fn one(
    archive: &Archive,
    binlog: &StoredBinlog,
    path: &Path,
    question: &Question,
    found: &mut Vec<Found>,
) -> anyhow::Result<()> {
    let Some(inherited) = path.inherited(binlog.opening.timeline) else {
        return Ok(());
    };
    let (mut tracker, mut unfolder) = (Tracker::default(), Unfolder::default());
    let (mut statements, mut tables) = (Vec::new(), Vec::new());
    visit(archive, binlog, |piece| {
        if piece.is_first() && piece.header.starts_transaction() {
            (statements, tables) = (Vec::new(), Vec::new());
        }
        unfolder.piece(piece, |header, body| match header.kind {
            // The statement behind the rows, where the server logs it (binlog_rows_query_log_events).
            kind::ROWS_QUERY => statements.push(String::from_utf8_lossy(body.get(1..).unwrap_or_default()).into_owned()),
            kind::QUERY => {
                if let Ok((_, text)) = parse_query(body)
                    && !matches!(text.as_str(), "BEGIN" | "COMMIT")
                {
                    statements.push(text);
                }
            }
            kind::TABLE_MAP => {
                if let Ok((schema, table)) = parse_table_map(body) {
                    let name = format!("{schema}.{table}");
                    if !tables.contains(&name) {
                        tables.push(name);
                    }
                }
            }
            _ => {}
        })?;
        if let Some(t) = tracker.piece(piece)?
            && inherited.covers(&[t.gtid].into_iter().collect())
            && matches(question, &t, &statements, &tables)
        {
            found.push(Found {
                gtid: t.gtid,
                committed_at: clock::format_utc(t.immediate_commit_us),
                binlog: binlog.place().name.clone(),
                position: t.start,
                timeline: binlog.opening.timeline,
                server_uuid: binlog.place().server_uuid,
                statements: statements
                    .iter()
                    .map(|s| s.chars().take(STATEMENT_CHARS_SHOWN).collect())
                    .collect(),
                tables: tables.clone(),
            });
        }
        Ok(Flow::Continue)
    })
    .await
}

fn matches(question: &Question, t: &Transaction, statements: &[String], tables: &[String]) -> bool {
    let in_time = question.since_us.is_none_or(|since| t.immediate_commit_us >= since)
        && question.until_us.is_none_or(|until| t.immediate_commit_us <= until);
    let says = question.statement.as_ref().is_none_or(|wanted| {
        let wanted = wanted.to_lowercase();
        statements.iter().any(|s| s.to_lowercase().contains(&wanted))
    });
    let touches = question.table.as_ref().is_none_or(|table| tables.contains(table));
    in_time && says && touches
}
