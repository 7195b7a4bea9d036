//! Orchestrator's answers: the fields that are used, under the names that it gives them.

use serde::Deserialize;

use super::InstanceKey;

/// A server as Orchestrator last saw it. What a role is decided by must be there; an answer without it is none.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Instance {
    pub key: InstanceKey,
    /// Where it replicates from; an empty host means nowhere. A server that died keeps its last one.
    master_key: InstanceKey,
    /// As it was when the server last answered.
    pub read_only: bool,
    /// The only field that says that the server lives: the others that sound like it are true of a dead one too.
    pub is_last_check_valid: bool,
    /// Its promotion rule is `prefer` or `must`.
    #[serde(default)]
    pub is_candidate: bool,
    /// It and its source replicate from each other.
    #[serde(default)]
    pub is_co_master: bool,
    /// The `host:port` of the cluster's primary: a promotion changes it.
    #[serde(default)]
    pub cluster_name: String,
    /// The name that stays; empty where none was configured.
    #[serde(default)]
    pub suggested_cluster_alias: String,
}

impl Instance {
    /// The server that it replicates from, be that alive or not.
    pub fn source(&self) -> Option<&InstanceKey> {
        (!self.master_key.host.is_empty()).then_some(&self.master_key)
    }
}

/// What an error looks like, whatever the HTTP status.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Complaint {
    code: String,
    message: String,
}

/// Orchestrator's answer to a question for a list of servers.
#[derive(Debug)]
pub(super) enum Answer {
    Instances(Vec<Instance>),
    /// Its own words.
    Error(String),
}

const CODE_OK: &str = "OK";

/// Reads a body. The HTTP status is no part of it: errors of all kinds come with 500.
pub(super) fn read(body: &[u8]) -> Result<Answer, serde_json::Error> {
    if let Ok(complaint) = serde_json::from_slice::<Complaint>(body)
        && complaint.code != CODE_OK
    {
        return Ok(Answer::Error(complaint.message));
    }
    // An empty list may be null.
    let instances: Option<Vec<Instance>> = serde_json::from_slice(body)?;
    Ok(Answer::Instances(instances.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(body: &str) -> Instance {
        serde_json::from_str(body).unwrap()
    }

    #[test]
    fn recorded_servers_are_read() {
        let primary = recorded(include_str!("../../tests/fixtures/orchestrator/instance-primary.json"));
        assert!(primary.is_last_check_valid && !primary.read_only && primary.source().is_none());
        assert_eq!(primary.key.to_string(), "127.0.0.1:14411");
        assert_eq!(
            (primary.cluster_name.as_str(), primary.suggested_cluster_alias.as_str()),
            ("127.0.0.1:14411", "demo")
        );

        let dead = recorded(include_str!("../../tests/fixtures/orchestrator/instance-primary-dead.json"));
        assert!(
            !dead.is_last_check_valid && !dead.read_only,
            "a dead server keeps its read_only"
        );

        let candidate = recorded(include_str!("../../tests/fixtures/orchestrator/instance-candidate.json"));
        assert!(candidate.is_candidate && candidate.read_only);
        assert_eq!(candidate.source(), Some(&primary.key));

        let replica = recorded(include_str!("../../tests/fixtures/orchestrator/instance-replica.json"));
        assert!(!replica.is_candidate && replica.source() == Some(&primary.key));
    }

    #[test]
    fn errors_and_empty_lists_are_told_from_garbage() {
        let error = read(include_bytes!("../../tests/fixtures/orchestrator/error-unknown-cluster.json")).unwrap();
        assert!(matches!(error, Answer::Error(text) if text.contains("Unable to determine cluster name")));
        assert!(matches!(read(b"null").unwrap(), Answer::Instances(list) if list.is_empty()));
        for garbage in [
            "",
            "<html>",
            "{}",
            "[{}]",
            r#"{"Code":"OK","Message":"fine"}"#,
            r#"[{"Key":{"Hostname":"a","Port":99999}}]"#,
        ] {
            assert!(read(garbage.as_bytes()).is_err(), "{garbage}");
        }
        let bomb = "[".repeat(1 << 20);
        assert!(read(bomb.as_bytes()).is_err(), "depth is limited");
    }
}
