//! The story, from top to bottom: one function for each chapter.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use mysql_pitr::{
    binlog::gtid::Gtid,
    mysql::query::Session,
    support::{clock, progress::human_bytes, secret::Secret},
};
use serde::de::DeserializeOwned;
use tokio::time::interval;

use crate::{
    answers::{Check, Found, Listing, Recovered, Snapshot},
    client::Client,
    load::Load,
    proof::prove,
    report::Report,
    schema::{self, ORDERS, SCHEMA},
    screen::{MYSQL, SHELL, Screen, Working, human_ms, thousands},
    stage::{CONFIG, Role, Stage, type_out},
    truth::{State, Truth},
};

const ACCOUNT: &str = "mysql_pitr@localhost";
/// What the agent needs, and no more.
const GRANTS: [&str; 2] = [
    "GRANT REPLICATION SLAVE, REPLICATION CLIENT, BACKUP_ADMIN, PROCESS, SHOW VIEW ON *.* TO mysql_pitr@localhost",
    "GRANT SELECT ON performance_schema.* TO mysql_pitr@localhost",
];
/// How long the load runs, in transactions.
const BEFORE_SNAPSHOT: u64 = 2_000;
const BEFORE_ROTATION: u64 = 1_500;
const BEFORE_ACCIDENT: u64 = 1_500;
const AFTER_ACCIDENT: u64 = 500;
/// Between two looks at what the agent has done, and how long it is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const LOOK_PATIENCE: Duration = Duration::from_secs(60);
const SEARCH: [&str; 3] = ["search", "--statement", "DROP TABLE"];

/// Tells it all. What becomes known on the way is in `report`, even where the story breaks off.
pub async fn tell(stage: &mut Stage, screen: &mut Screen, report: &mut Report) -> anyhow::Result<()> {
    let mut story = Story {
        stage,
        screen,
        report,
        truth: Arc::new(Truth::new()),
    };
    let mut admin = story.a_server().await?;
    story.the_agent().await?;
    let mut load = story.the_load(&mut admin).await?;
    story.a_snapshot().await?;
    story.a_rotation(&mut admin, &mut load).await?;
    let dropped = story.the_accident(&mut admin, &mut load).await?;
    story.the_rest(load, dropped).await?;
    let target = story.the_search(dropped).await?;
    let expected = story.truth.before(dropped, schema::tables());
    let mut recovered = story.the_recovery(&target).await?;
    story.the_proof(&mut recovered, &expected).await
}

struct Story<'a> {
    stage: &'a mut Stage,
    screen: &'a mut Screen,
    report: &'a mut Report,
    truth: Arc<Truth>,
}

impl Story<'_> {
    async fn a_server(&mut self) -> anyhow::Result<Client> {
        self.screen.chapter("A MySQL server, and an account for the agent");
        let working = self.screen.working("a new server makes its system tables", String::new);
        self.stage.initialize().await?;
        drop(working);
        let working = self.screen.working("the server starts", String::new);
        let mut session = self.stage.start_server(Role::Primary).await?;
        drop(working);
        let version = session.variables().await?.version().to_owned();
        session.close().await;
        let data = self.stage.shown(Role::Primary.name());
        self.screen.done(format!("MySQL {version} runs, with its data in {data}"));

        let mut admin = Client::connect(&self.stage.root_of(Role::Primary)).await?;
        let password = Secret::random();
        self.screen
            .command(MYSQL, &format!("CREATE USER {ACCOUNT} IDENTIFIED BY '…';"));
        let sql = format!("CREATE USER {ACCOUNT} IDENTIFIED BY '{}'", password.reveal());
        self.execute(&mut admin, &sql).await?;
        for sql in GRANTS.into_iter().chain(["INSTALL PLUGIN clone SONAME 'mysql_clone.so'"]) {
            self.type_sql(&mut admin, sql).await?;
        }
        self.stage.configure("mysql_pitr", &password)?;
        let config = self.stage.shown(CONFIG);
        self.screen.command(SHELL, &format!("export MYSQL_PITR_CONFIG={config}"));
        self.screen.command(SHELL, &type_out(&["check"]));
        let checks: Vec<Check> = self.ask(&["check"]).await?;
        let fine = checks.iter().filter(|c| c.is_ok()).count();
        self.screen.done(format!("{fine} of {} checks are OK", checks.len()));
        for check in checks.iter().filter(|c| !c.is_ok()) {
            let hint = check.hint.as_deref().unwrap_or_default();
            self.screen
                .more(format!("{} {}: {} → {hint}", check.verdict, check.name, check.detail));
        }
        Ok(admin)
    }

    async fn the_agent(&mut self) -> anyhow::Result<()> {
        self.screen.chapter("The agent ships the server's binlogs");
        self.screen.command(SHELL, "mysql-pitr agent &");
        self.stage.start_agent()?;
        let working = self
            .screen
            .working("the agent takes the first snapshot by itself", String::new);
        look(self.stage, "the agent's first snapshot", async |stage| {
            let listing: Listing = parse(&stage.run(&["list", "--json"]).await?)?;
            Ok(listing.snapshots.iter().any(Snapshot::is_complete).then_some(()))
        })
        .await?;
        drop(working);
        let archive = self.stage.shown("archive");
        self.screen.done(format!(
            "the archive {archive} has its first snapshot, and binlogs arrive from now on"
        ));
        Ok(())
    }

    async fn the_load(&mut self, admin: &mut Client) -> anyhow::Result<Load> {
        self.screen.chapter("Applications write");
        for sql in schema::definitions() {
            self.execute(admin, &sql).await?;
        }
        let tables: Vec<&str> = schema::tables().collect();
        self.screen
            .done(format!("the schema {SCHEMA} has the tables {}", tables.join(", ")));
        let mut load = Load::start(&self.stage.root_of(Role::Primary), &self.truth).await?;
        self.screen.done(format!(
            "{} connections write: two banks, two shops, and a journal of JSON events",
            load.writers()
        ));
        self.screen
            .more("what each transaction did is also noted outside MySQL, under the GTID that the");
        self.screen
            .more("server acknowledged it with: that is the truth which the recovery is held against");
        self.go_on(&mut load, BEFORE_SNAPSHOT).await?;
        Ok(load)
    }

    async fn a_snapshot(&mut self) -> anyhow::Result<()> {
        self.screen.chapter("A snapshot, while they write");
        let command = ["snapshot"];
        self.screen.command(SHELL, &type_out(&command));
        let before = self.truth.transactions();
        let working = self.counting("the running agent takes a snapshot");
        let printed = self.stage.run(&command).await?;
        drop(working);
        self.screen.output(&printed);
        let meanwhile = self.truth.transactions() - before;
        self.screen
            .done(format!("{} transactions were committed meanwhile", thousands(meanwhile)));
        Ok(())
    }

    async fn a_rotation(&mut self, admin: &mut Client, load: &mut Load) -> anyhow::Result<()> {
        self.screen.chapter("They go on, and the binlog rotates");
        self.go_on(load, BEFORE_ROTATION).await?;
        let mut session = Session::connect(&self.stage.root_of(Role::Primary)).await?;
        let live = session.binary_logs().await?.pop().context("the server has no binlog")?.name;
        session.close().await;
        self.type_sql(admin, "FLUSH BINARY LOGS").await?;
        self.go_on(load, BEFORE_ACCIDENT).await?;
        let sealed = look(self.stage, "a sealed binlog", async |stage| {
            let listing: Listing = parse(&stage.run(&["list", "--json"]).await?)?;
            Ok(listing.binlogs.into_iter().find(|b| b.name == live && b.sealed))
        })
        .await?;
        self.screen.done(format!(
            "{live} is closed, and sealed in the archive: {} transactions, {}, stored as {}",
            thousands(sealed.transactions.unwrap_or_default()),
            human_bytes(sealed.bytes),
            human_bytes(sealed.stored_bytes)
        ));
        self.screen
            .more("the live binlog lies in the archive too, in segments, at most a second behind");
        Ok(())
    }

    /// Returns the transaction that should never have been.
    async fn the_accident(&mut self, admin: &mut Client, load: &mut Load) -> anyhow::Result<Gtid> {
        self.screen.chapter("The accident");
        let since = clock::format_utc(clock::now_us());
        let dropped = self.type_sql(admin, &format!("DROP TABLE {SCHEMA}.{ORDERS}")).await?;
        let dropped = dropped.context("the server acknowledged DROP TABLE without a GTID")?;
        let lost = load.first_lost().await?;
        self.screen.failed(format!("a {}: {}", lost.application, lost.message));
        let rows = self.truth.before(dropped, schema::tables()).tables[ORDERS].len();
        self.screen.more(format!(
            "{} orders are gone; banks and journal know nothing of it, and go on",
            thousands(rows as u64)
        ));
        let command = [&SEARCH[..], &["--since", &since, "--json"]].concat();
        let working = self.counting("is it in the archive yet?");
        let (found, found_at_us) = look(self.stage, "the DROP in the archive", async |stage| {
            let found: Vec<Found> = parse(&stage.run(&command).await?)?;
            Ok(found.into_iter().next().map(|f| (f, clock::now_us())))
        })
        .await?;
        drop(working);
        let committed_us = clock::parse_rfc3339(&found.committed_at).map_err(anyhow::Error::msg)?;
        let rpo_ms = u64::try_from((found_at_us - committed_us) / 1000)?;
        self.report.rpo_ms = Some(rpo_ms);
        self.screen.done(format!(
            "RPO {}: so long after its commit the DROP was found in the archive, and everything before it",
            human_ms(rpo_ms)
        ));
        Ok(dropped)
    }

    async fn the_rest(&mut self, mut load: Load, dropped: Gtid) -> anyhow::Result<()> {
        self.go_on(&mut load, AFTER_ACCIDENT).await?;
        let lost = load.stop().await?;
        ensure!(!lost.is_empty(), "no application noticed the accident");
        let (all, after) = (self.truth.transactions(), self.truth.count_after(dropped));
        self.screen.done(format!(
            "the load is stopped: {} transactions, {} of them after the DROP, which must not come back",
            thousands(all),
            thousands(after)
        ));
        Ok(())
    }

    /// Returns the GTID to recover to, as a DBA would copy it.
    async fn the_search(&mut self, dropped: Gtid) -> anyhow::Result<String> {
        self.screen.chapter("Which transaction was it?");
        self.screen.command(SHELL, &type_out(&SEARCH));
        let printed = self.stage.run(&SEARCH).await?;
        self.screen.output(&printed);
        let found: Vec<Found> = self.ask(&SEARCH).await?;
        let [Found { gtid, .. }] = &found[..] else {
            bail!(
                "search found {} transactions that drop a table, and there was one",
                found.len()
            );
        };
        ensure!(
            gtid.parse::<Gtid>()? == dropped,
            "search found {gtid}, but the server acknowledged the DROP as {dropped}"
        );
        self.report.target_gtid = Some(dropped);
        self.screen
            .done("it is the one that the server acknowledged; the way back ends just before it");
        Ok(gtid.clone())
    }

    /// Returns a session with the recovered server.
    async fn the_recovery(&mut self, target: &str) -> anyhow::Result<Session> {
        self.screen.chapter("Recovery into a new server");
        let folder = self.stage.shown(Role::Recovered.name());
        let plan = ["recover", "--target-gtid", target, "--exclusive", "--dry-run"];
        self.screen.command(SHELL, &type_out(&plan));
        let printed = self.stage.run(&plan).await?;
        self.screen.output(&printed);

        let command = ["recover", "--target-gtid", target, "--exclusive", "--target-dir", &folder];
        self.screen.command(SHELL, &type_out(&[&command[..], &["--json"]].concat()));
        let began = Instant::now();
        let working = self.screen.working("recovering", String::new);
        let recovered: Recovered = self.ask(&command).await?;
        drop(working);
        self.report.target_time = recovered.recovered_to;
        self.report.transactions_replayed = Some(recovered.transactions_replayed);
        self.screen.done(format!(
            "{folder} is a server's data folder, with {} transactions replayed onto the snapshot",
            thousands(recovered.transactions_replayed)
        ));
        let phases: Vec<String> = recovered
            .phases
            .iter()
            .map(|p| format!("{} {}", p.name, human_ms(p.ms)))
            .collect();
        self.screen.more(phases.join(", "));

        let working = self
            .screen
            .working("the new server starts, with ordinary settings", String::new);
        let session = self.stage.start_server(Role::Recovered).await?;
        drop(working);
        let rto_ms = u64::try_from(began.elapsed().as_millis())?;
        self.report.rto_ms = Some(rto_ms);
        self.screen.done(format!(
            "RTO {}: so long after the recover command the new server answers",
            human_ms(rto_ms)
        ));
        Ok(session)
    }

    async fn the_proof(&mut self, recovered: &mut Session, expected: &State) -> anyhow::Result<()> {
        self.screen
            .chapter("The proof: every table, read by SELECT, against the truth kept outside MySQL");
        let proof = prove(recovered, expected).await?;
        for table in &proof.tables {
            let line = format!(
                "{:<18} {:>6} rows expected, {:>6} recovered, sha256 {:.12} and {:.12}",
                table.table,
                thousands(table.rows_expected),
                thousands(table.rows_recovered),
                table.sha256_expected,
                table.sha256_recovered
            );
            if table.is_equal() {
                self.screen.done(line);
            } else {
                self.screen.failed(line);
            }
        }
        if proof.gtid_executed_expected == proof.gtid_executed_recovered {
            self.screen
                .done(format!("gtid_executed is {}, as expected", proof.gtid_executed_recovered));
        }
        for difference in &proof.differences {
            self.screen.failed(difference);
        }
        self.report.prove(proof);
        let warnings = self.stage.agent_warnings()?;
        if warnings.is_empty() {
            self.screen.done("the agent's log has no warnings");
        } else {
            self.screen.say("the agent's log has warnings:");
            self.screen.output(&warnings.join("\n"));
        }
        Ok(())
    }

    /// Shows a statement, and runs it.
    async fn type_sql(&mut self, admin: &mut Client, sql: &str) -> anyhow::Result<Option<Gtid>> {
        self.screen.command(MYSQL, &format!("{sql};"));
        self.execute(admin, sql).await
    }

    /// Administration takes GTIDs as well: the truth is to know all of them.
    async fn execute(&mut self, admin: &mut Client, sql: &str) -> anyhow::Result<Option<Gtid>> {
        let gtid = admin.execute(sql).await?;
        if let Some(gtid) = gtid {
            self.truth.acknowledged(gtid, Vec::new());
        }
        Ok(gtid)
    }

    async fn go_on(&mut self, load: &mut Load, transactions: u64) -> anyhow::Result<()> {
        let (began, before) = (Instant::now(), self.truth.transactions());
        let working = self.counting("writing");
        load.go_on(transactions).await?;
        drop(working);
        let written = self.truth.transactions() - before;
        self.screen.done(format!(
            "{} transactions more, {} a second",
            thousands(written),
            thousands((written as f64 / began.elapsed().as_secs_f64()) as u64)
        ));
        self.stage.ensure_agent_runs()
    }

    /// A moving line that shows how the load gets on.
    fn counting(&self, text: &str) -> Working {
        let truth = self.truth.clone();
        self.screen.working(text, move || {
            format!("{} transactions so far", thousands(truth.transactions()))
        })
    }

    /// Runs a command for its JSON.
    async fn ask<T: DeserializeOwned>(&mut self, arguments: &[&str]) -> anyhow::Result<T> {
        parse(&self.stage.run(&[arguments, &["--json"]].concat()).await?)
    }
}

fn parse<T: DeserializeOwned>(json: &str) -> anyhow::Result<T> {
    serde_json::from_str(json).context("mysql-pitr answered with unexpected JSON")
}

/// Looks again and again for what the agent is to do, as long as it runs.
async fn look<T>(
    stage: &mut Stage,
    what: &str,
    mut at: impl AsyncFnMut(&mut Stage) -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let (began, mut looks) = (Instant::now(), interval(LOOK_INTERVAL));
    while began.elapsed() < LOOK_PATIENCE {
        looks.tick().await;
        stage.ensure_agent_runs()?;
        if let Some(found) = at(stage).await? {
            return Ok(found);
        }
    }
    bail!(
        "{what} did not come within {} s; see {}",
        LOOK_PATIENCE.as_secs(),
        stage.shown("agent.log")
    )
}
