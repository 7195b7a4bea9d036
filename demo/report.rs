//! What the demo found, for people and for machines. It is filled while the story goes on, so that whatever is known is
//! reported even where the story breaks off.

use std::{fs, path::Path};

use anyhow::Context;
use mysql_pitr::binlog::gtid::Gtid;
use serde::Serialize;

use crate::{
    proof::Proof,
    screen::{Screen, human_ms, thousands},
};

/// What is not known is null.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether the recovered server was compared with the truth and no difference was found.
    pub ok: bool,
    /// Why the demo broke off.
    pub error: Option<String>,
    pub rows_expected: Option<u64>,
    pub rows_recovered: Option<u64>,
    pub transactions_expected: Option<u64>,
    pub transactions_replayed: Option<u64>,
    /// The commit of the last transaction that was recovered, RFC 3339, UTC.
    pub target_time: Option<String>,
    /// The transaction before which the recovery stopped.
    pub target_gtid: Option<Gtid>,
    /// From the commit of that transaction until it was found in the archive.
    pub rpo_ms: Option<u64>,
    /// From the `recover` command until the recovered server answered.
    pub rto_ms: Option<u64>,
    /// From the start of the demo to this report.
    pub demo_ms: u64,
    #[serde(flatten)]
    pub proof: Option<Proof>,
}

impl Report {
    pub fn prove(&mut self, proof: Proof) {
        self.rows_expected = Some(proof.rows_expected());
        self.rows_recovered = Some(proof.rows_recovered());
        self.transactions_expected = Some(proof.gtid_executed_expected.count());
        self.ok = proof.differences.is_empty() && proof.tables.iter().all(|t| t.is_equal());
        self.proof = Some(proof);
    }

    /// What went wrong ends every claim that all is well.
    pub fn fail(&mut self, error: String) {
        self.ok = false;
        self.error.get_or_insert(error);
    }

    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn show(&self, screen: &Screen) {
        let verdict = match (self.ok, &self.proof) {
            (true, _) => "OK: the recovered server holds exactly the right transactions",
            (false, Some(_)) => "FAILED: the recovered server is not what it should be",
            (false, None) => "FAILED: the demo broke off before anything was proved",
        };
        let mut lines = Vec::new();
        // What is not known is left out.
        let mut line = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
        let duration = |ms, of| format!("{:<7}  {of}", human_ms(ms));
        line("recovered to", self.target_time.clone());
        let stop = self.target_gtid.filter(|_| self.target_time.is_some());
        line("stopped before", stop.map(|gtid| format!("{gtid}, the DROP")));
        let replayed = |n| format!("{} replayed onto the snapshot", thousands(n));
        line("transactions", self.transactions_replayed.map(replayed));
        if let Some(proof) = &self.proof {
            let equal = proof.tables.iter().filter(|t| t.is_equal()).count();
            line("tables", Some(format!("{equal} of {} equal the truth", proof.tables.len())));
            let (expected, recovered) = (thousands(proof.rows_expected()), thousands(proof.rows_recovered()));
            line("rows", Some(format!("{expected} expected, {recovered} recovered")));
        }
        let rpo = |ms| duration(ms, "from the DROP's commit until it was found in the archive");
        line("RPO", self.rpo_ms.map(rpo));
        let rto = |ms| duration(ms, "from the recover command until the new server answered");
        line("RTO", self.rto_ms.map(rto));
        screen.frame(self.ok, verdict, &lines);
    }
}
