//! How long a recovery may take: at the rates of this machine's last recovery of the shard, or, as long as there was none to measure, at
//! assumed ones. An estimate always says which.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::{
    archive::keys::Shard,
    support::{clock, durable, progress::human_bytes},
};

use super::{Recovered, plan::Plan};

/// Beside the agent's state file.
pub const FILE: &str = "recovery-rates.json";
const FORMAT: u32 = 1;
/// Assumed where nothing was measured: modest next to what a machine of two cores with a local disk was seen to do, for a volume of a cloud
/// is slower.
const UNPACK_BYTES_PER_S: u64 = 100 << 20;
const REPLAY_TRANSACTIONS_PER_S: u64 = 5_000;
const REPLAY_BYTES_PER_S: u64 = 20 << 20;
/// Two starts and two clean shutdowns of a server.
const STARTS_S: u64 = 10;
/// What is over sooner tells more of how it begins and ends than of its rate.
const MEASURED_MS_MIN: u64 = 5_000;

/// What recoveries of a shard were seen to do on this machine; of each phase the last one that was long enough.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    format: u32,
    shard: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    unpack: Option<Unpack>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<Replay>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Unpack {
    measured_at: String,
    /// Of the data, uncompressed.
    bytes_per_s: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Replay {
    measured_at: String,
    transactions_per_s: u64,
    /// Of the binlogs, uncompressed.
    bytes_per_s: u64,
}

/// How long it may take, and on what that rests.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    pub seconds: u64,
    pub basis: String,
}

impl Rates {
    /// Nothing was measured yet.
    pub fn assumed(shard: &Shard) -> Rates {
        Rates {
            format: FORMAT,
            shard: shard.to_string(),
            unpack: None,
            replay: None,
        }
    }

    /// What was measured of this shard; nothing, where that cannot be read.
    pub fn read(path: &Path, shard: &Shard) -> Rates {
        let assumed = Rates::assumed(shard);
        let read = fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Rates>(&bytes).ok());
        read.filter(|read| (read.format, &read.shard) == (FORMAT, &assumed.shard))
            .unwrap_or(assumed)
    }

    /// For the next estimate. Where they cannot be kept, that one is assumed.
    pub fn write(&self, path: &Path) {
        let written = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        if let Err(e) = written.and_then(|bytes| durable::write(path, &bytes)) {
            debug!("the rates of this recovery are not kept in {}: {e}", path.display());
        }
    }

    /// Learns from a recovery that succeeded.
    pub fn learn(&mut self, plan: &Plan, recovered: &Recovered) {
        let ms = |name: &str| recovered.phases.iter().find(|p| p.name == name).map(|p| p.ms);
        let now = || clock::format_utc(clock::now_us());
        self.learn_unpack(now(), plan.snapshot.data_bytes, ms("unpack"));
        self.learn_replay(now(), recovered.transactions_replayed, recovered.bytes_replayed, ms("replay"));
    }

    fn learn_unpack(&mut self, measured_at: String, bytes: u64, ms: Option<u64>) {
        if let Some(bytes_per_s) = ms.and_then(|ms| rate(bytes, ms)) {
            self.unpack = Some(Unpack {
                measured_at,
                bytes_per_s,
            });
        }
    }

    fn learn_replay(&mut self, measured_at: String, transactions: u64, bytes: u64, ms: Option<u64>) {
        let rates = ms.and_then(|ms| Some((rate(transactions, ms)?, rate(bytes, ms)?)));
        if let Some((transactions_per_s, bytes_per_s)) = rates {
            self.replay = Some(Replay {
                measured_at,
                transactions_per_s,
                bytes_per_s,
            });
        }
    }

    /// For a snapshot of `data_bytes`, uncompressed, and the replay of `transactions` in binlogs of `bytes`, uncompressed. Transactions
    /// differ in size: what is slower at the rates counts.
    pub fn estimate(&self, data_bytes: u64, transactions: u64, bytes: u64) -> Estimate {
        let unpack_rate = self.unpack.as_ref().map_or(UNPACK_BYTES_PER_S, |u| u.bytes_per_s.max(1));
        let (transaction_rate, byte_rate) = self
            .replay
            .as_ref()
            .map_or((REPLAY_TRANSACTIONS_PER_S, REPLAY_BYTES_PER_S), |r| {
                (r.transactions_per_s.max(1), r.bytes_per_s.max(1))
            });
        let unpack = data_bytes.div_ceil(unpack_rate);
        let replay = transactions.div_ceil(transaction_rate).max(bytes.div_ceil(byte_rate));
        let is_measured = self.unpack.is_some() || self.replay.is_some();
        let source = |measured_at: Option<&String>| match measured_at {
            Some(at) => format!(" (as this machine's recovery of {at} did)"),
            None if is_measured => " (assumed)".to_owned(),
            None => String::new(),
        };
        let basis = format!(
            "{unpack} s for {} of data at {}/s{}, {replay} s for the replay at {transaction_rate} transactions/s or {}/s, whichever is \
             slower{}, {STARTS_S} s for starts and checks{}",
            human_bytes(data_bytes),
            human_bytes(unpack_rate),
            source(self.unpack.as_ref().map(|u| &u.measured_at)),
            human_bytes(byte_rate),
            source(self.replay.as_ref().map(|r| &r.measured_at)),
            if is_measured {
                " (assumed)"
            } else {
                "; assumed, not measured here"
            },
        );
        Estimate {
            seconds: unpack + replay + STARTS_S,
            basis,
        }
    }
}

/// Per second; None where it took too little time to tell, or nothing was done.
fn rate(done: u64, ms: u64) -> Option<u64> {
    const MS_PER_S: u64 = 1000;
    let per_s = done.saturating_mul(MS_PER_S).checked_div(ms)?;
    (ms >= MEASURED_MS_MIN && per_s > 0).then_some(per_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn shard(name: &str) -> Shard {
        name.to_owned().try_into().unwrap()
    }

    #[test]
    fn an_estimate_says_what_was_measured_and_what_is_assumed() {
        let mut rates = Rates::assumed(&shard("s"));
        let estimate = rates.estimate(GIB, 6_000, 1);
        assert_eq!(estimate.seconds, 11 + 2 + STARTS_S);
        assert_eq!(
            estimate.basis,
            "11 s for 1.0 GiB of data at 100.0 MiB/s, 2 s for the replay at 5000 transactions/s or 20.0 MiB/s, whichever is slower, \
             10 s for starts and checks; assumed, not measured here"
        );
        rates.learn_replay("2026-11-20T03:14:07Z".into(), 120_000, GIB, Some(60_000));
        let estimate = rates.estimate(GIB, 6_000, 1);
        assert_eq!(estimate.seconds, 11 + 3 + STARTS_S);
        assert_eq!(
            estimate.basis,
            "11 s for 1.0 GiB of data at 100.0 MiB/s (assumed), 3 s for the replay at 2000 transactions/s or 17.1 MiB/s, whichever is \
             slower (as this machine's recovery of 2026-11-20T03:14:07Z did), 10 s for starts and checks (assumed)"
        );
        rates.learn_unpack("2026-11-21T03:14:07Z".into(), 10 * GIB, Some(10_000));
        assert_eq!(rates.estimate(GIB, 6_000, 1).seconds, 1 + 3 + STARTS_S);
    }

    #[test]
    fn a_phase_that_is_over_at_once_or_did_nothing_tells_no_rate() {
        let mut rates = Rates::assumed(&shard("s"));
        rates.learn_unpack(String::new(), GIB, Some(MEASURED_MS_MIN - 1));
        rates.learn_unpack(String::new(), GIB, None);
        rates.learn_replay(String::new(), 0, 0, Some(60_000));
        assert_eq!(rates, Rates::assumed(&shard("s")));
        rates.learn_unpack(String::new(), GIB, Some(MEASURED_MS_MIN));
        assert!(rates.unpack.is_some());
    }

    #[test]
    fn what_is_kept_is_of_one_shard_and_never_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut rates = Rates::assumed(&shard("s"));
        rates.learn_unpack("then".into(), GIB, Some(10_000));
        rates.write(&path);
        assert_eq!(Rates::read(&path, &shard("s")), rates);
        assert_eq!(Rates::read(&path, &shard("t")), Rates::assumed(&shard("t")));
        fs::write(&path, "{ this is").unwrap();
        assert_eq!(Rates::read(&path, &shard("s")), Rates::assumed(&shard("s")));
        rates.write(&dir.path().join("no/such/folder/file"));
    }
}
