//! Whether a server is fit to be shipped from: one verdict per question, with what to do.

use std::{os::unix::fs::MetadataExt, path::Path};

use serde::Serialize;

use crate::support::{clock, hint::message, progress::human_bytes};

use super::query::{Session, Variables, version_number};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    Ok,
    Warning,
    Failed,
}

/// One line of `mysql-pitr check`.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Check {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Check {
        Check {
            name,
            verdict: Verdict::Ok,
            detail: detail.into(),
            hint: None,
        }
    }

    pub fn warning(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Check {
        Check {
            name,
            verdict: Verdict::Warning,
            detail: detail.into(),
            hint: Some(hint.into()),
        }
    }

    pub fn failed(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Check {
        Check {
            name,
            verdict: Verdict::Failed,
            detail: detail.into(),
            hint: Some(hint.into()),
        }
    }

    fn either(name: &'static str, good: bool, otherwise: Verdict, detail: impl Into<String>, hint: &str) -> Check {
        let verdict = if good { Verdict::Ok } else { otherwise };
        Check {
            name,
            verdict,
            detail: detail.into(),
            hint: (!good).then(|| hint.to_owned()),
        }
    }
}

const VERSION_MIN: u32 = 80_000;
/// SHOW BINARY LOG STATUS replaces SHOW MASTER STATUS from here on.
const VERSION_BINARY_LOG_STATUS: u32 = 80_200;
/// Binlogs should outlive a weekend's outage of the store.
const EXPIRE_S_MIN: u64 = 3 * 24 * 3600;
const CLOCK_SKEW_US_MAX: i64 = 1_000_000;
const PRIVILEGES: [&str; 4] = ["REPLICATION SLAVE", "REPLICATION CLIENT", "BACKUP_ADMIN", "PROCESS"];

/// What shipping and `clone` snapshots need of the server behind `session`.
pub async fn server(session: &mut Session) -> anyhow::Result<Vec<Check>> {
    let v = session.variables().await?;
    let mut checks = variables(&v);
    checks.push(privileges(session).await?);
    checks.push(filters(session, &v).await?);
    checks.push(engines(session).await?);
    checks.push(clock_skew(session).await?);
    Ok(checks)
}

/// The server settings that decide whether an archive of it can be trusted.
pub fn variables(v: &Variables) -> Vec<Check> {
    let value = |names: &[&str]| v.get(names).unwrap_or("(unknown)").to_owned();
    let expire: u64 = v
        .get(&["binlog_expire_logs_seconds"])
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    let sync = value(&["sync_binlog"]);
    let flush = value(&["innodb_flush_log_at_trx_commit"]);
    use Verdict::{Failed, Warning};
    vec![
        Check::either(
            "version",
            version_number(v.version()) >= VERSION_MIN,
            Failed,
            v.version(),
            "MySQL 8.0 or later is needed",
        ),
        Check::either(
            "log_bin",
            v.is_on(&["log_bin"]),
            Failed,
            value(&["log_bin"]),
            "start mysqld with --log-bin",
        ),
        Check::either(
            "gtid_mode",
            v.is_on(&["gtid_mode"]),
            Failed,
            value(&["gtid_mode"]),
            "set gtid_mode=ON and enforce_gtid_consistency=ON; positions alone cannot name a transaction across failovers",
        ),
        Check::either(
            "binlog_format",
            value(&["binlog_format"]).eq_ignore_ascii_case("ROW"),
            Failed,
            value(&["binlog_format"]),
            "set binlog_format=ROW; statements may give other data when they are replayed",
        ),
        Check::either(
            "binlog_row_image",
            value(&["binlog_row_image"]).eq_ignore_ascii_case("FULL"),
            Warning,
            value(&["binlog_row_image"]),
            "set binlog_row_image=FULL if rows are to be found and undone from the archive; recovery itself works without",
        ),
        Check::either(
            "durability",
            sync == "1" && flush == "1",
            Warning,
            format!("sync_binlog={sync}, innodb_flush_log_at_trx_commit={flush}"),
            "set both to 1; otherwise a crash may take transactions back that the archive holds",
        ),
        Check::either(
            "log_replica_updates",
            v.is_on(&["log_replica_updates", "log_slave_updates"]),
            Failed,
            value(&["log_replica_updates", "log_slave_updates"]),
            "set log_replica_updates=ON; after a failover the archive would miss what was replicated before",
        ),
        Check::either(
            "binlog_checksum",
            value(&["binlog_checksum"]).eq_ignore_ascii_case("CRC32"),
            Warning,
            value(&["binlog_checksum"]),
            "set binlog_checksum=CRC32, so that damage is noticed on arrival",
        ),
        Check::either(
            "expiry",
            expire == 0 || expire >= EXPIRE_S_MIN,
            Warning,
            format!("binlog_expire_logs_seconds={expire}"),
            "binlogs that expire before they are shipped are lost; three days or more outlive an outage of the store",
        ),
    ]
}

/// The statement's name before this version, and that of its columns.
const VERSION_REPLICA_STATUS: u32 = 80_022;

/// What one replication channel says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Channel {
    name: String,
    io_runs: bool,
    applier_runs: bool,
    /// Empty where there is none.
    error: String,
}

/// Whether a replica replicates: a channel of it receives and applies, without an error.
pub async fn replication(session: &mut Session) -> anyhow::Result<Check> {
    let (version,): (String,) = session.one("SELECT VERSION()").await?;
    let (statement, role) = if version_number(&version) < VERSION_REPLICA_STATUS {
        ("SHOW SLAVE STATUS", "Slave")
    } else {
        ("SHOW REPLICA STATUS", "Replica")
    };
    let rows: Vec<mysql_async::Row> = session.rows(statement).await?;
    let channel = |row: &mysql_async::Row| {
        let text = |column: &str| row.get::<Option<String>, _>(column).flatten().unwrap_or_default();
        let errors = [text("Last_IO_Error"), text("Last_SQL_Error")];
        Channel {
            name: text("Channel_Name"),
            io_runs: text(&format!("{role}_IO_Running")) == "Yes",
            applier_runs: text(&format!("{role}_SQL_Running")) == "Yes",
            error: errors.into_iter().find(|e| !e.is_empty()).unwrap_or_default(),
        }
    };
    Ok(judge_replication(&rows.iter().map(channel).collect::<Vec<_>>()))
}

fn judge_replication(channels: &[Channel]) -> Check {
    const NAME: &str = "replication";
    let is_well = |c: &&Channel| c.io_runs && c.applier_runs && c.error.is_empty();
    if let Some(well) = channels.iter().find(is_well) {
        return Check::ok(NAME, format!("channel `{}` runs", well.name));
    }
    let yes = |runs: bool| if runs { "runs" } else { "does not run" };
    let describe = |c: &Channel| {
        let error = if c.error.is_empty() {
            String::new()
        } else {
            format!(": {}", c.error)
        };
        format!(
            "channel `{}`: the receiver {}, the applier {}{error}",
            c.name,
            yes(c.io_runs),
            yes(c.applier_runs)
        )
    };
    let detail = match channels {
        [] => "this server is read-only and replicates from nobody".to_owned(),
        channels => channels.iter().map(describe).collect::<Vec<_>>().join("; "),
    };
    Check::failed(
        NAME,
        detail,
        "repair its replication (SHOW REPLICA STATUS), or take the snapshot on the primary",
    )
}

async fn privileges(session: &mut Session) -> anyhow::Result<Check> {
    const NAME: &str = "privileges";
    let (user,): (String,) = session.one("SELECT CURRENT_USER()").await?;
    let held = global_privileges(session).await?;
    let missing: Vec<&str> = PRIVILEGES.into_iter().filter(|p| !held.iter().any(|h| h == p)).collect();
    let mut wanted: Vec<String> = missing.iter().map(|p| (*p).to_owned()).collect();
    if !sees_all_tables(session).await? {
        wanted.push("SHOW VIEW".into());
    }
    Ok(if wanted.is_empty() {
        Check::ok(NAME, user)
    } else {
        Check::failed(
            NAME,
            format!("{user} lacks {}", wanted.join(", ")),
            format!("GRANT {} ON *.* TO {}", wanted.join(", "), quoted(&user)),
        )
    })
}

/// What locking the server for a snapshot of its volumes needs beyond the rest.
pub async fn lock_privileges(session: &mut Session) -> anyhow::Result<Check> {
    const NAME: &str = "lock privileges";
    let (user,): (String,) = session.one("SELECT CURRENT_USER()").await?;
    Ok(if global_privileges(session).await?.iter().any(|p| p == "RELOAD") {
        Check::ok(NAME, user)
    } else {
        let grant = format!("GRANT RELOAD ON *.* TO {}", quoted(&user));
        Check::failed(NAME, format!("{user} lacks RELOAD"), grant)
    })
}

async fn global_privileges(session: &mut Session) -> anyhow::Result<Vec<String>> {
    let rows: Vec<(String,)> = session
        .rows(
            "SELECT privilege_type FROM information_schema.user_privileges \
             WHERE grantee = CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''')",
        )
        .await?;
    Ok(rows.into_iter().map(|(privilege,)| privilege).collect())
}

/// Whether information_schema shows this account every table: it shows only those on which the account may do something.
pub async fn sees_all_tables(session: &mut Session) -> anyhow::Result<bool> {
    Ok(global_privileges(session)
        .await?
        .iter()
        .any(|p| p == "SELECT" || p == "SHOW VIEW"))
}

fn quoted(user: &str) -> String {
    let (name, host) = user.rsplit_once('@').unwrap_or((user, "%"));
    format!("'{name}'@'{host}'")
}

async fn filters(session: &mut Session, v: &Variables) -> anyhow::Result<Check> {
    const NAME: &str = "binlog filters";
    let sql = if version_number(v.version()) >= VERSION_BINARY_LOG_STATUS {
        "SHOW BINARY LOG STATUS"
    } else {
        "SHOW MASTER STATUS"
    };
    let rows: Vec<mysql_async::Row> = match session.rows(sql).await {
        Ok(rows) => rows,
        Err(e) => {
            return Ok(Check::warning(
                NAME,
                message(&e),
                "grant REPLICATION CLIENT, so that it can be looked up",
            ));
        }
    };
    let text = |column: usize| rows.first().and_then(|r| r.get::<String, _>(column)).unwrap_or_default();
    let (only, ignored) = (text(2), text(3));
    Ok(if only.is_empty() && ignored.is_empty() {
        Check::ok(NAME, "none")
    } else {
        let detail = format!("binlog_do_db={only} binlog_ignore_db={ignored}");
        Check::failed(NAME, detail, "remove the filters; what they leave out is in no archive")
    })
}

/// Tables that a clone would leave empty, as `schema.table (engine)`.
pub async fn foreign_engine_tables(session: &mut Session) -> anyhow::Result<Vec<String>> {
    let rows: Vec<(String,)> = session
        .rows(
            "SELECT CONCAT(table_schema, '.', table_name, ' (', engine, ')') FROM information_schema.tables \
             WHERE table_type = 'BASE TABLE' AND engine NOT IN ('InnoDB', 'PERFORMANCE_SCHEMA', 'BLACKHOLE') \
             AND NOT (table_schema = 'mysql' AND table_name IN ('general_log', 'slow_log')) ORDER BY 1",
        )
        .await?;
    Ok(rows.into_iter().map(|(name,)| name).collect())
}

async fn engines(session: &mut Session) -> anyhow::Result<Check> {
    const NAME: &str = "engines";
    if !sees_all_tables(session).await? {
        return Ok(Check::failed(
            NAME,
            "the account does not see all tables",
            "grant SHOW VIEW on *.*",
        ));
    }
    let foreign = foreign_engine_tables(session).await?;
    Ok(if foreign.is_empty() {
        Check::ok(NAME, "all tables are InnoDB")
    } else {
        let hint = "convert them to InnoDB, or name them in accept_empty of the [snapshot] section: a clone holds them empty";
        Check::warning(NAME, format!("not InnoDB: {}", foreign.join(", ")), hint)
    })
}

async fn clock_skew(session: &mut Session) -> anyhow::Result<Check> {
    const NAME: &str = "clock";
    let before = clock::now_us();
    let (server_us,): (i64,) = session.one("SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)").await?;
    let after = clock::now_us();
    let skew_us = if server_us < before {
        server_us - before
    } else {
        (server_us - after).max(0)
    };
    let detail = format!("the server's clock differs by {} ms", skew_us / 1000);
    let hint = "synchronise the clocks: --target-time is compared with the server's";
    Ok(Check::either(
        NAME,
        skew_us.abs() <= CLOCK_SKEW_US_MAX,
        Verdict::Warning,
        detail,
        hint,
    ))
}

/// Whether the clone plugin is there and has room for a whole local copy.
pub async fn clone_plugin(session: &mut Session, staging: &Path) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    let active: Vec<(String,)> = session
        .rows("SELECT plugin_status FROM information_schema.plugins WHERE plugin_name = 'clone' AND plugin_status = 'ACTIVE'")
        .await?;
    checks.push(Check::either(
        "clone plugin",
        !active.is_empty(),
        Verdict::Failed,
        if active.is_empty() { "not installed" } else { "active" },
        "INSTALL PLUGIN clone SONAME 'mysql_clone.so'",
    ));
    checks.push(staging_dir(session, staging).await?);
    Ok(checks)
}

async fn staging_dir(session: &mut Session, staging: &Path) -> anyhow::Result<Check> {
    const NAME: &str = "staging_dir";
    let shown = staging.display();
    let v = session.variables().await?;
    let Ok(meta) = std::fs::metadata(staging) else {
        return Ok(Check::failed(
            NAME,
            format!("{shown} does not exist or cannot be read"),
            "create it, owned by the user that mysqld runs as, readable by mysql-pitr",
        ));
    };
    if let (Ok(staging), Ok(datadir)) = (staging.canonicalize(), v.datadir().canonicalize())
        && staging.starts_with(&datadir)
    {
        let detail = format!("{shown} lies in the server's datadir, and mysqld refuses to clone into that");
        return Ok(Check::failed(
            NAME,
            detail,
            "put staging_dir beside the datadir, on the same or another volume",
        ));
    }
    let mysqld_may_write = std::fs::metadata(v.datadir()).is_ok_and(|d| d.uid() == meta.uid()) || meta.mode() & 0o002 != 0;
    if !mysqld_may_write {
        return Ok(Check::failed(
            NAME,
            format!("{shown} does not belong to the owner of the server's datadir"),
            format!("chown it to the owner of {}", v.datadir().display()),
        ));
    }
    let needed = match session
        .one::<(Option<u64>,)>("SELECT CAST(SUM(file_size) AS UNSIGNED) FROM information_schema.innodb_tablespaces")
        .await
    {
        Ok((bytes,)) => bytes.unwrap_or(0),
        Err(_) => {
            return Ok(Check::warning(
                NAME,
                "the size of the data cannot be looked up",
                "grant PROCESS",
            ));
        }
    };
    let free = free_bytes(staging)?;
    let detail = format!("{shown}: {} free, a clone takes {}", human_bytes(free), human_bytes(needed));
    Ok(Check::either(
        NAME,
        free > needed,
        Verdict::Failed,
        detail,
        "put staging_dir on a larger volume",
    ))
}

/// Free for ordinary users on the volume of `path`.
pub fn free_bytes(path: &Path) -> anyhow::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_channel_that_runs_without_an_error_is_enough() {
        let channel = |io_runs, applier_runs, error: &str| Channel {
            name: "c".into(),
            io_runs,
            applier_runs,
            error: error.into(),
        };
        let well = channel(true, true, "");
        let ill = [
            channel(false, true, "Got fatal error 1236"),
            channel(true, false, ""),
            channel(true, true, "error 1062"),
        ];
        assert_eq!(judge_replication(&[]).verdict, Verdict::Failed);
        for ill in ill {
            let check = judge_replication(std::slice::from_ref(&ill));
            assert_eq!(check.verdict, Verdict::Failed);
            assert!(check.hint.is_some() && check.detail.contains(&ill.error), "{check:?}");
            assert_eq!(judge_replication(&[ill, well.clone()]).verdict, Verdict::Ok);
        }
    }

    #[test]
    fn a_server_without_gtids_fails() {
        let v = Variables(
            [("version", "9.7.4"), ("gtid_mode", "OFF")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
        );
        let check = variables(&v).into_iter().find(|c| c.name == "gtid_mode").unwrap();
        assert_eq!(check.verdict, Verdict::Failed);
        assert!(check.hint.unwrap().contains("gtid_mode=ON"));
    }
}
