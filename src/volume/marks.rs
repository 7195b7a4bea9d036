//! What the snapshots that this program makes are known by. Tags alone say little: whoever copies a snapshot copies its tags.

use super::cloud::{Made, OPERATION_TAG, SOURCE_TAG};

/// Whose data it holds. What roles may do is bounded by it.
pub const SHARD_TAG: &str = "mysql-pitr:shard";
/// Where its record lies: it says which transactions the snapshot holds, for which a tag has no room.
pub const RECORD_TAG: &str = "mysql-pitr:record";
pub const SERVER_TAG: &str = "mysql-pitr:server";
pub const ORIGIN_TAG: &str = "mysql-pitr:origin";
pub const NAME_TAG: &str = "Name";
/// What EC2 calls the volume of every copy.
const NO_VOLUME: &str = "vol-ffffffff";

/// Of the snapshots of an operation in the home region.
pub fn description(shard: &str, operation: &str) -> String {
    format!("mysql-pitr: shard {shard}, snapshot {operation}")
}

/// Of a copy.
pub fn copy_description(source: &str, home: &str) -> String {
    format!("{}{home}", copy_begin(source))
}

fn copy_begin(source: &str) -> String {
    format!("copy of {source} from ")
}

fn tag<'m>(made: &'m Made, key: &str) -> Option<&'m str> {
    made.tags.get(key).map(String::as_str)
}

/// The operation of this shard whose tags it bears, whoever made it.
pub fn operation<'m>(made: &'m Made, shard: &str) -> Option<&'m str> {
    tag(made, OPERATION_TAG).filter(|_| tag(made, SHARD_TAG) == Some(shard))
}

pub fn bears(made: &Made, shard: &str, of: &str) -> bool {
    operation(made, shard) == Some(of)
}

/// Where its record is said to lie.
pub fn record(made: &Made) -> Option<&str> {
    tag(made, RECORD_TAG)
}

/// Whether a request of this operation made it. Copies that a person or a lifecycle policy makes bear its tags, and another description;
/// and in the home region they are copies, which ours are not.
pub fn is_own(made: &Made, shard: &str, of: &str) -> bool {
    let is_described = match tag(made, SOURCE_TAG) {
        Some(source) => made.description.starts_with(&copy_begin(source)),
        None => made.description == description(shard, of) && made.volume_id != NO_VOLUME,
    };
    is_described && bears(made, shard, of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::cloud::MadeState;

    fn made(volume_id: &str, description: &str, tags: &[(&str, &str)]) -> Made {
        Made {
            snapshot_id: "snap-1".to_owned(),
            volume_id: volume_id.to_owned(),
            description: description.to_owned(),
            started_at_us: None,
            state: MadeState::Complete,
            percent: None,
            encrypted: None,
            kms_key: None,
            tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[test]
    fn copies_of_others_bear_our_tags_and_are_not_ours() {
        let tags = [(SHARD_TAG, "shop"), (OPERATION_TAG, "o1")];
        let home = made("vol-1", &description("shop", "o1"), &tags);
        assert!(is_own(&home, "shop", "o1") && !is_own(&home, "shop", "o2") && !is_own(&home, "other", "o1"));
        // A lifecycle policy's, a person's with the description taken over, a snapshot of another program.
        let policys = made("vol-ffffffff", "[Copied snap-1 from eu-west-1]", &tags);
        let persons = made("vol-ffffffff", &description("shop", "o1"), &tags);
        let other = made("vol-1", "before the upgrade", &tags);
        for copy in [policys, persons, other] {
            assert!(bears(&copy, "shop", "o1") && !is_own(&copy, "shop", "o1"), "{copy:?}");
        }
        let tags = [tags[0], tags[1], (SOURCE_TAG, "snap-0")];
        let copy = made("vol-ffffffff", &copy_description("snap-0", "eu-west-1"), &tags);
        assert!(is_own(&copy, "shop", "o1"));
        let copied = made("vol-ffffffff", "[Copied snap-1 from eu-central-1]", &tags);
        let of_another = made("vol-ffffffff", &copy_description("snap-01", "eu-west-1"), &tags);
        assert!(!is_own(&copied, "shop", "o1") && !is_own(&of_another, "shop", "o1"));
    }
}
