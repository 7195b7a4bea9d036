//! A recovery's report: one JSON document to be kept, written when the recovery begins and again when it ends, however it
//! ends. `docs/recovery-report.md` describes it.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::{
    archive::listing::Archive,
    support::{
        clock, durable,
        hint::{OrHint, hint_of, message},
    },
};

use super::{Course, Recovered, run::Phase, summary::Summary};

const FORMAT: u32 = 1;

#[derive(Debug, Serialize)]
pub struct Report {
    format: u32,
    /// As it was given; no argument is a secret.
    command: Vec<String>,
    mysql_pitr_version: &'static str,
    started_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchivePlace>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<Recovered>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Or killed: then nobody could say so.
    Running,
    Recovered,
    Failed,
}

#[derive(Debug, Serialize)]
pub struct ArchivePlace {
    pub url: String,
    pub shard: String,
}

impl ArchivePlace {
    pub fn of(archive: &Archive) -> ArchivePlace {
        ArchivePlace {
            url: archive.store.url().to_string(),
            shard: archive.shard.to_string(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Failure {
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    phases: Vec<Phase>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Report {
    pub fn begin(command: impl IntoIterator<Item = String>) -> Report {
        Report {
            format: FORMAT,
            command: command.into_iter().collect(),
            mysql_pitr_version: env!("CARGO_PKG_VERSION"),
            started_at: clock::format_utc(clock::now_us()),
            ended_at: None,
            outcome: Outcome::Running,
            archive: None,
            plan: None,
            recovered: None,
            failure: None,
        }
    }

    pub fn succeeded(&mut self, recovered: &Recovered) {
        self.recovered = Some(recovered.clone());
        self.end(Outcome::Recovered);
    }

    pub fn failed(&mut self, error: &anyhow::Error, course: &Course) {
        self.failure = Some(Failure {
            error: message(error),
            hint: hint_of(error),
            phases: course.phases.clone(),
            warnings: course.warnings.clone(),
        });
        self.end(Outcome::Failed);
    }

    fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
        self.ended_at = Some(clock::format_utc(clock::now_us()));
    }

    /// Replaces `path`, whole or not at all.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        durable::write(path, &serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write the report {}", path.display()))
            .hint("name a file in a folder that may be written with --report")
    }
}
