//! What a server is in its shard, from what Orchestrator knows of all of them.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{Instance, InstanceKey};

/// A server's part in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The one that is written to.
    Primary,
    /// A replica that is meant to be promoted: promotion rule `prefer` or `must`.
    CandidatePrimary,
    Replica,
    /// It cannot be told.
    Unknown,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Primary, Role::CandidatePrimary, Role::Replica, Role::Unknown];

    /// As in JSON, and as the metrics' label.
    pub fn label(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::CandidatePrimary => "candidate_primary",
            Role::Replica => "replica",
            Role::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Primary => "primary",
            Role::CandidatePrimary => "candidate primary",
            Role::Replica => "replica",
            Role::Unknown => "unknown",
        })
    }
}

/// What one view says of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub role: Role,
    /// Alive, writable, replicating from nobody, and the only such server in the view. Never true of two servers in one view.
    pub confirmed_primary: bool,
    /// Whether the shard's snapshots are this server's to take. Never true of two servers in one view.
    pub takes_snapshots: bool,
    /// The cluster's alias, or where it has none its name.
    pub cluster: String,
    /// Alive, writable, and at the head of their replicas. More than one is a split.
    pub living_primaries: Vec<InstanceKey>,
    /// Alive, replicas of the living primary where there is one, and meant to be promoted.
    pub living_candidates: Vec<InstanceKey>,
    /// Why the role is unknown, where it is.
    pub unclear: Option<String>,
}

/// Chains of replicas are a few servers long; a circle has no end.
const REPLICATION_DEPTH_MAX: usize = 32;

/// What `instances` say of the server `us`; None where it is not among them. Of two entries for one server the first counts.
pub fn judge(instances: &[Instance], us: &InstanceKey) -> Option<Verdict> {
    let mut view: BTreeMap<&InstanceKey, &Instance> = BTreeMap::new();
    for instance in instances {
        view.entry(&instance.key).or_insert(instance);
    }
    let me = *view.get(us)?;
    let primaries: Vec<&Instance> = view.values().copied().filter(|i| is_living_primary(i)).collect();
    let candidates: Vec<&InstanceKey> = view
        .values()
        .filter(|i| i.is_last_check_valid && i.is_candidate && i.source().is_some() && !is_living_primary(i))
        // A candidate that was left behind with a deposed primary has an old history to take a snapshot of.
        .filter(|i| primaries.is_empty() || follows_one_of(i, &primaries, &view))
        .map(|i| &i.key)
        .collect();
    let (role, unclear) = match role(me, &primaries) {
        Ok(role) => (role, None),
        Err(why) => (Role::Unknown, Some(why)),
    };
    Some(Verdict {
        role,
        confirmed_primary: role == Role::Primary && me.source().is_none(),
        takes_snapshots: match candidates.first() {
            Some(first) => **first == me.key,
            None => role == Role::Primary,
        },
        cluster: [&me.suggested_cluster_alias, &me.cluster_name]
            .into_iter()
            .find(|name| !name.is_empty())
            .cloned()
            .unwrap_or_default(),
        living_primaries: primaries.iter().map(|i| i.key.clone()).collect(),
        living_candidates: candidates.into_iter().cloned().collect(),
        unclear,
    })
}

fn role(me: &Instance, primaries: &[&Instance]) -> Result<Role, String> {
    if !me.is_last_check_valid {
        return Err("it could not reach this server when it last looked".into());
    }
    if is_living_primary(me) {
        return match primaries {
            [_] => Ok(Role::Primary),
            several => {
                let names: Vec<String> = several.iter().map(|i| i.key.to_string()).collect();
                Err(format!(
                    "the shard has {} living, writable primaries: {}",
                    names.len(),
                    names.join(", ")
                ))
            }
        };
    }
    if is_head(me) && !me.is_co_master {
        return Err("this server is read-only, and replicates from nobody".into());
    }
    Ok(if me.is_candidate {
        Role::CandidatePrimary
    } else {
        Role::Replica
    })
}

fn is_living_primary(i: &Instance) -> bool {
    i.is_last_check_valid && !i.read_only && is_head(i)
}

/// Nobody is above it. One of two that replicate from each other is as high as the other; a server that seems to replicate from itself,
/// as it does where names are resolved wrongly, has no other source.
fn is_head(i: &Instance) -> bool {
    i.is_co_master || i.source().is_none_or(|source| *source == i.key)
}

fn follows_one_of(replica: &Instance, primaries: &[&Instance], view: &BTreeMap<&InstanceKey, &Instance>) -> bool {
    let mut at = replica;
    for _ in 0..REPLICATION_DEPTH_MAX {
        let Some(source) = at.source() else { return false };
        if primaries.iter().any(|p| p.key == *source) {
            return true;
        }
        match view.get(source) {
            Some(next) => at = next,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const CLUSTER: &str = include_str!("../../tests/fixtures/orchestrator/cluster.json");
    const CLUSTER_PRIMARY_DEAD: &str = include_str!("../../tests/fixtures/orchestrator/cluster-primary-dead.json");

    fn key(port: u16) -> InstanceKey {
        InstanceKey {
            host: "127.0.0.1".into(),
            port,
        }
    }

    fn roles(instances: &[Instance], ports: [u16; 3]) -> [(Role, bool, bool); 3] {
        ports.map(|port| {
            let v = judge(instances, &key(port)).unwrap();
            (v.role, v.confirmed_primary, v.takes_snapshots)
        })
    }

    /// A member of a made-up cluster; `source` 0 is none.
    fn member(port: u16, source: u16, flags: [bool; 4]) -> Instance {
        let [living, read_only, candidate, co_master] = flags;
        let host = if source == 0 { "" } else { "127.0.0.1" };
        serde_json::from_value(json!({
            "Key": {"Hostname": "127.0.0.1", "Port": port}, "MasterKey": {"Hostname": host, "Port": source},
            "ReadOnly": read_only, "IsLastCheckValid": living, "IsCandidate": candidate, "IsCoMaster": co_master,
        }))
        .unwrap()
    }

    #[test]
    fn the_recorded_cluster_has_one_of_each() {
        use Role::{CandidatePrimary, Primary, Replica, Unknown};
        let ports = [14411, 14412, 14413];
        let alive: Vec<Instance> = serde_json::from_str(CLUSTER).unwrap();
        assert_eq!(
            roles(&alive, ports),
            [
                (Primary, true, false),
                (CandidatePrimary, false, true),
                (Replica, false, false)
            ]
        );
        assert_eq!(judge(&alive, &key(14411)).unwrap().cluster, "demo");
        assert_eq!(judge(&alive, &key(9999)), None);

        let dead: Vec<Instance> = serde_json::from_str(CLUSTER_PRIMARY_DEAD).unwrap();
        assert_eq!(
            roles(&dead, ports),
            [
                (Unknown, false, false),
                (CandidatePrimary, false, true),
                (Replica, false, false)
            ]
        );
    }

    #[test]
    fn a_split_confirms_nobody_and_names_both() {
        let split = [
            member(1, 0, [true, false, false, false]),
            member(2, 0, [true, false, false, false]),
        ];
        for port in [1, 2] {
            let v = judge(&split, &key(port)).unwrap();
            assert_eq!(
                (v.role, v.confirmed_primary, v.takes_snapshots),
                (Role::Unknown, false, false)
            );
            assert_eq!(
                v.unclear.unwrap(),
                "the shard has 2 living, writable primaries: 127.0.0.1:1, 127.0.0.1:2"
            );
        }
    }

    #[test]
    fn a_primary_without_a_living_candidate_takes_its_snapshots() {
        let view = [
            member(1, 0, [true, false, false, false]),
            member(2, 1, [false, true, true, false]),
        ];
        assert!(judge(&view, &key(1)).unwrap().takes_snapshots);
    }

    #[test]
    fn a_candidate_that_was_left_with_the_deposed_primary_takes_none() {
        // 1 died, 2 was promoted, 3 still points at 1; 4 follows 2 through 5.
        let mut view = vec![
            member(1, 0, [false, false, false, false]),
            member(2, 0, [true, false, false, false]),
            member(3, 1, [true, true, true, false]),
        ];
        assert!(judge(&view, &key(2)).unwrap().takes_snapshots);
        assert!(!judge(&view, &key(3)).unwrap().takes_snapshots);
        view.extend([
            member(4, 5, [true, true, true, false]),
            member(5, 2, [true, true, false, false]),
        ]);
        assert!(!judge(&view, &key(2)).unwrap().takes_snapshots);
        assert!(judge(&view, &key(4)).unwrap().takes_snapshots);
    }

    #[test]
    fn of_two_that_replicate_from_each_other_the_writable_one_is_primary_and_unconfirmed() {
        let view = [
            member(1, 2, [true, false, false, true]),
            member(2, 1, [true, true, true, true]),
        ];
        let (active, passive) = (judge(&view, &key(1)).unwrap(), judge(&view, &key(2)).unwrap());
        assert_eq!((active.role, active.confirmed_primary), (Role::Primary, false));
        assert_eq!((passive.role, passive.takes_snapshots), (Role::CandidatePrimary, true));
    }

    #[test]
    fn a_read_only_server_without_a_source_is_unclear() {
        let v = judge(&[member(1, 0, [true, true, false, false])], &key(1)).unwrap();
        assert_eq!((v.role, v.takes_snapshots), (Role::Unknown, false));
        assert!(v.unclear.unwrap().contains("read-only"));
    }

    #[test]
    fn a_writable_replica_is_a_replica() {
        let view = [
            member(1, 0, [true, false, false, false]),
            member(2, 1, [true, false, false, false]),
        ];
        assert_eq!(judge(&view, &key(2)).unwrap().role, Role::Replica);
        assert!(
            judge(&view, &key(1)).unwrap().confirmed_primary,
            "its writability takes nothing from the primary"
        );
    }

    prop_compose! {
        fn any_member()(port in 1..7u16, source in 0..8u16, flags in any::<[bool; 4]>()) -> Instance {
            member(port, source, flags)
        }
    }

    proptest! {
        /// Whatever Orchestrator says, circles and servers listed twice included.
        #[test]
        fn no_view_gives_snapshots_or_the_primary_to_two_servers(view in proptest::collection::vec(any_member(), 1..10)) {
            let verdicts: Vec<Verdict> = (1..7).filter_map(|port| judge(&view, &key(port))).collect();
            prop_assert!(verdicts.iter().filter(|v| v.takes_snapshots).count() <= 1);
            prop_assert!(verdicts.iter().filter(|v| v.confirmed_primary).count() <= 1);
            prop_assert!(verdicts.iter().filter(|v| v.role == Role::Primary).count() <= 1);
            for v in &verdicts {
                prop_assert!(!v.confirmed_primary || v.living_primaries.len() == 1);
                prop_assert!(v.living_candidates.is_empty() || v.role != Role::Primary || !v.takes_snapshots);
                prop_assert_eq!(v.role == Role::Unknown, v.unclear.is_some());
            }
            if let Some(v) = verdicts.first().filter(|v| !v.living_candidates.is_empty()) {
                let taken = judge(&view, &v.living_candidates[0]).unwrap();
                prop_assert!(taken.takes_snapshots, "a living candidate takes them");
            }
        }
    }
}
