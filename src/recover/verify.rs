//! The proof: the server starts with its own durability, holds exactly the planned set and, if asked for, only sound tables.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{mysql::query::Session, support::progress::Progress};

use super::{
    instance::{Instance, Purpose},
    plan::Plan,
    run::Settings,
    tables::{CheckedTable, check_tables},
    workdir::Workdir,
};

/// What the recovered server says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verified {
    pub server_uuid: Uuid,
    pub server_version: String,
    pub xa_prepared: Vec<String>,
    pub events_disabled: Vec<String>,
    /// None where nobody asked for it.
    pub tables: Option<Vec<CheckedTable>>,
}

/// i7: a clean start, and exactly the planned set.
pub async fn verify(settings: &Settings, plan: &Plan, workdir: &Workdir, progress: &Progress) -> anyhow::Result<Verified> {
    let mut instance = Instance::start(&settings.mysqld, workdir, &plan.snapshot, Purpose::Verify)
        .await
        .context("the recovered server does not start")?;
    let executed = instance.session.gtid_executed().await?;
    if executed != plan.target_gtids {
        bail!("the recovered server holds {executed} instead of {}", plan.target_gtids);
    }
    let variables = instance.session.variables().await?;
    let xa_prepared = xa_prepared(&mut instance.session).await?;
    let events_disabled = events_disabled(&mut instance.session).await?;
    let tables = if settings.verify_tables {
        progress.phase("checking tables");
        Some(check_tables(&mut instance, progress).await?)
    } else {
        None
    };
    instance.session.execute("SET GLOBAL super_read_only = OFF").await?;
    instance
        .stop(true)
        .await
        .context("the recovered server did not shut down cleanly")?;
    Ok(Verified {
        server_uuid: variables.server_uuid()?,
        server_version: variables.version().to_owned(),
        xa_prepared,
        events_disabled,
        tables,
    })
}

/// Whether these ran at the source nobody can tell here: the server marks each event alike that it is told of by replication.
async fn events_disabled(session: &mut Session) -> anyhow::Result<Vec<String>> {
    let events: Vec<(String,)> = session
        .rows(
            "SELECT CONCAT('`', event_schema, '`.`', event_name, '`') FROM information_schema.events \
             WHERE status LIKE '%SIDE_DISABLED' ORDER BY 1",
        )
        .await?;
    Ok(events.into_iter().map(|(name,)| name).collect())
}

async fn xa_prepared(session: &mut Session) -> anyhow::Result<Vec<String>> {
    let rows: Vec<(i64, usize, usize, String)> = session.rows("XA RECOVER CONVERT XID").await?;
    Ok(rows
        .into_iter()
        .map(|(format, gtrid_bytes, _, data)| {
            // Both parts in one hexadecimal number; where the first ends, its length says.
            let digits = data.trim_start_matches("0x");
            let (gtrid, bqual) = digits.split_at_checked(2 * gtrid_bytes).unwrap_or((digits, ""));
            format!("X'{gtrid}',X'{bqual}',{format}")
        })
        .collect())
}
