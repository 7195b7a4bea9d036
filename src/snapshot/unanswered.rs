//! Why nobody takes a snapshot that was asked for, as far as the bucket tells.

use crate::{
    archive::{
        listing::Archive,
        path,
        presence::{Presence, presences},
        records::Timeline,
    },
    orchestrator::Role,
    support::clock::{Moment, US_PER_S},
};

/// What is known, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub struct Reason {
    pub text: String,
    pub hint: String,
}

pub async fn reason(archive: &Archive) -> anyhow::Result<Reason> {
    let (presences, timelines) = (presences(archive).await?, archive.timelines().await?);
    Ok(explain(&presences, &timelines, archive.clock.now_us()))
}

/// Pure.
fn explain(presences: &[Presence], timelines: &[Timeline], now_us: i64) -> Reason {
    let tip = path::tip(timelines);
    let Some(last) = presences.iter().map(|p| p.at_us).max() else {
        let text = match tip {
            Some(tip) => format!("no agent has ever told of itself; server {} shipped last", tip.server_uuid),
            None => "the store knows no such shard".to_owned(),
        };
        return Reason {
            text,
            hint: "compare shard and store with the configuration of the shard's servers, and see whether their agents run"
                .to_owned(),
        };
    };
    let entitled: Vec<&Presence> = presences.iter().filter(|p| p.takes_snapshots && !p.is_stopped).collect();
    if let Some(newest) = entitled.iter().max_by_key(|p| p.at_us) {
        return Reason {
            text: format!(
                "the agent of server {} takes the shard's snapshots, and last told of itself {}",
                newest.server_uuid,
                ago(newest.at_us, now_us)
            ),
            hint: "see whether it runs, and what its log says: systemctl status mysql-pitr, mysql-pitr status".to_owned(),
        };
    }
    let is_tip = |p: &Presence| tip.is_some_and(|tip| tip.server_uuid == p.server_uuid);
    let each: Vec<String> = presences.iter().map(|p| describe(p, is_tip(p), now_us)).collect();
    let all_stopped = presences.iter().all(|p| p.is_stopped);
    let any_unknown = presences.iter().any(|p| !p.is_stopped && p.role == Role::Unknown);
    let hint = if all_stopped {
        "start the agent of the server that is to take it".to_owned()
    } else if any_unknown {
        "see whether Orchestrator can be asked: mysql-pitr check, on these servers".to_owned()
    } else {
        format!(
            "start the agent of the primary's candidate, or of the primary; the last sign of any came {}",
            ago(last, now_us)
        )
    };
    Reason {
        text: format!("no agent that runs takes the shard's snapshots: {}", each.join("; ")),
        hint,
    }
}

fn describe(p: &Presence, is_tip: bool, now_us: i64) -> String {
    let current = if is_tip { ", whose timeline is the current one," } else { "" };
    let when = ago(p.at_us, now_us);
    if p.is_stopped {
        return format!("that of server {}{current} was stopped {when}", p.server_uuid);
    }
    let what = match (p.role, p.writable) {
        (Role::Unknown, _) => "does not know its role".to_owned(),
        (role, Some(true)) => format!("is {role} and writable"),
        (role, Some(false)) => format!("is {role} and read-only"),
        (role, None) => format!("is {role}, and was not reached"),
    };
    format!("server {}{current} {what}, said its agent {when}", p.server_uuid)
}

fn ago(at_us: i64, now_us: i64) -> String {
    match now_us.saturating_sub(at_us) / US_PER_S {
        ..=1 => "just now".to_owned(),
        s @ 2..120 => format!("{s} s ago"),
        s @ 120..7200 => format!("{} min ago", s / 60),
        _ => format!("at {}", Moment(at_us)),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use crate::archive::records::FORMAT_VERSION;

    use super::*;

    const NOW_US: i64 = 1_795_000_000_000_000;

    fn presence(number: u128, age_s: i64) -> Presence {
        Presence {
            format: FORMAT_VERSION,
            server_uuid: Uuid::from_u128(number),
            version: "0".into(),
            at_us: NOW_US - age_s * US_PER_S,
            is_stopped: false,
            role: Role::Replica,
            standalone: false,
            writable: Some(false),
            takes_snapshots: false,
        }
    }

    fn text(presences: &[Presence]) -> String {
        let timeline = serde_json::json!({
            "format": 1, "id": 1, "parent": null, "server_uuid": Uuid::from_u128(1), "branch_set": "", "reason": "first-start",
            "adopted": true, "nonce": Uuid::nil(), "claimed_at_us": 1,
        });
        explain(presences, &[serde_json::from_value(timeline).unwrap()], NOW_US).text
    }

    #[test]
    fn says_whose_agent_should_have_done_it() {
        let mut taker = presence(2, 300);
        taker.takes_snapshots = true;
        let said = text(&[presence(1, 5), taker.clone()]);
        assert!(
            said.contains("0002 takes the shard's snapshots, and last told of itself 5 min ago"),
            "{said}"
        );
        taker.is_stopped = true;
        let said = text(&[presence(1, 5), taker]);
        assert!(
            said.contains("0001, whose timeline is the current one, is replica and read-only, said its agent 5 s ago")
                && said.contains("0002 was stopped 5 min ago"),
            "{said}"
        );
    }

    #[test]
    fn says_that_nobody_knows_its_role_or_that_nobody_is_there() {
        let lost = Presence {
            role: Role::Unknown,
            ..presence(1, 5)
        };
        assert!(text(std::slice::from_ref(&lost)).contains("does not know its role"));
        assert!(explain(&[lost], &[], NOW_US).hint.contains("Orchestrator"));
        assert!(text(&[]).contains("no agent has ever told of itself; server 00000000-0000-0000-0000-000000000001 shipped last"));
        assert_eq!(explain(&[], &[], NOW_US).text, "the store knows no such shard");
    }
}
