//! What the server's appliers say: what they are at, how far they are, and which transaction failed, and where it lies.

use anyhow::{anyhow, bail};

use crate::{
    archive::{
        listing::Archive,
        reader::{Flow, visit},
    },
    binlog::{gtid::Gtid, transaction::Tracker},
    mysql::query::Session,
    source::Leg,
    support::hint::with_hint,
};

pub async fn is_applying(session: &mut Session) -> anyhow::Result<bool> {
    let sql = "SELECT COUNT(*) FROM performance_schema.replication_applier_status_by_worker WHERE applying_transaction <> ''";
    let (busy,): (u64,) = session.one(sql).await?;
    Ok(busy > 0)
}

/// When the transaction that was applied last was committed at the server in whose binlog it is.
pub async fn applied_us(session: &mut Session) -> anyhow::Result<Option<i64>> {
    let sql = "SELECT CAST(UNIX_TIMESTAMP(MAX(last_applied_transaction_immediate_commit_timestamp)) * 1000000 AS SIGNED) \
               FROM performance_schema.replication_applier_status_by_worker";
    let (us,): (Option<i64>,) = session.one(sql).await?;
    Ok(us.filter(|us| *us > 0))
}

/// Nothing is skipped: the first transaction that cannot be applied ends the recovery and is named.
pub async fn fail_on_error(session: &mut Session, archive: &Archive, legs: &[Leg]) -> anyhow::Result<()> {
    let sql = "SELECT last_error_number, last_error_message, applying_transaction FROM performance_schema.replication_applier_status_by_worker \
               WHERE last_error_number <> 0 \
               UNION ALL SELECT last_error_number, last_error_message, '' FROM performance_schema.replication_applier_status_by_coordinator \
               WHERE last_error_number <> 0";
    let rows: Vec<(u32, String, String)> = session.rows(sql).await?;
    if let Some((number, message, applying)) = rows.into_iter().next() {
        let (gtid, reason) = failed_transaction(&message, &applying);
        let where_ = match gtid.parse() {
            Ok(gtid) => place(archive, legs, gtid).await.unwrap_or_default(),
            Err(_) => String::new(),
        };
        let e = anyhow!("the server could not apply transaction {gtid}{where_}: {reason} (error {number})");
        return Err(with_hint(
            e,
            "recover to the moment before it, and look at what it does with `mysql-pitr search`",
        ));
    }
    let sql = "SELECT last_error_number, last_error_message FROM performance_schema.replication_connection_status \
               WHERE last_error_number <> 0 AND service_state = 'OFF'";
    let rows: Vec<(u32, String)> = session.rows(sql).await?;
    match rows.into_iter().next() {
        None => Ok(()),
        Some((number, message)) => bail!("the server could not read the archive from this process: {message} (error {number})"),
    }
}

/// GTID and reason out of `Worker 1 failed executing transaction 'GTID' at source log pitr-000000.000002, end_log_pos 513; reason`,
/// whose names of binlogs are made up.
fn failed_transaction<'a>(message: &'a str, applying: &'a str) -> (&'a str, &'a str) {
    let quoted = message
        .split_once("failed executing transaction '")
        .and_then(|(_, rest)| rest.split_once('\''));
    match quoted {
        Some((gtid, rest)) => {
            let reason = rest.split_once("; ").map_or(rest, |(_, reason)| reason);
            (gtid, reason.trim_end())
        }
        None => (applying, message),
    }
}

/// In which binlog and object a transaction lies, and at which position.
async fn place(archive: &Archive, legs: &[Leg], gtid: Gtid) -> Option<String> {
    for leg in legs.iter().filter(|leg| leg.wanted.contains(&gtid)) {
        let (mut tracker, mut position) = (Tracker::default(), None);
        let read = visit(archive, &leg.binlog, |piece| {
            position = tracker.piece(piece)?.filter(|t| t.gtid == gtid).map(|t| t.start);
            Ok(if position.is_some() { Flow::Enough } else { Flow::Continue })
        });
        // What cannot be read is another error's business.
        read.await.ok()?;
        if let Some(position) = position {
            let object = leg.binlog.key_at(&archive.shard, position).unwrap_or_default();
            return Some(format!(
                " ({} at {position}, in object {}/{object})",
                leg.binlog.place(),
                archive.store.url()
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_do_not_reach_an_error() {
        let message = "Worker 1 failed executing transaction 'u:5' at source log pitr-000000.000002, end_log_pos 513; \
                       Error executing row event: 'Table 'd.t' doesn't exist'";
        assert_eq!(
            failed_transaction(message, ""),
            ("u:5", "Error executing row event: 'Table 'd.t' doesn't exist'")
        );
        assert_eq!(
            failed_transaction("Coordinator stopped", "u:6"),
            ("u:6", "Coordinator stopped")
        );
    }
}
