//! GTIDs and sets as MySQL writes and reads them: `uuid:1-5:8:tag:1-2,uuid:…`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::gtid::{Gtid, GtidError, GtidSet, Tag, Tsid};

/// The largest number in a GTID, as MySQL has it: 2^63 - 2.
pub(super) const GNO_MAX: u64 = i64::MAX as u64 - 1;

impl fmt::Display for Tsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.uuid)?;
        if !self.tag.is_none() {
            write!(f, ":{}", self.tag.as_str())?;
        }
        Ok(())
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.tsid, self.gno)
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last: Option<Uuid> = None;
        for (tsid, list) in &self.intervals {
            if last != Some(tsid.uuid) {
                write!(f, "{}{}", if last.is_some() { "," } else { "" }, tsid.uuid)?;
                last = Some(tsid.uuid);
            }
            if !tsid.tag.is_none() {
                write!(f, ":{}", tsid.tag.as_str())?;
            }
            for i in list {
                write!(f, ":{}", i.start)?;
                if i.end > i.start + 1 {
                    write!(f, "-{}", i.end - 1)?;
                }
            }
        }
        Ok(())
    }
}

fn parse_uuid(text: &str) -> Result<Uuid, GtidError> {
    Uuid::try_parse(text).map_err(|_| GtidError(format!("`{}` is not a server uuid", text.escape_debug())))
}

fn parse_gno(text: &str) -> Result<u64, GtidError> {
    match text.trim().parse::<u64>() {
        Ok(gno) if (1..=GNO_MAX).contains(&gno) => Ok(gno),
        _ => Err(GtidError(format!("`{}` is not a transaction number", text.escape_debug()))),
    }
}

impl FromStr for Gtid {
    type Err = GtidError;

    fn from_str(text: &str) -> Result<Gtid, GtidError> {
        let parts: Vec<&str> = text.trim().split(':').map(str::trim).collect();
        match parts[..] {
            [uuid, gno] => Ok(Gtid::new(parse_uuid(uuid)?, Tag::NONE, parse_gno(gno)?)),
            [uuid, tag, gno] => Ok(Gtid::new(parse_uuid(uuid)?, Tag::new(tag)?, parse_gno(gno)?)),
            _ => Err(GtidError(format!(
                "`{}` is not of the form uuid:number or uuid:tag:number",
                text.escape_debug()
            ))),
        }
    }
}

impl FromStr for GtidSet {
    type Err = GtidError;

    fn from_str(text: &str) -> Result<GtidSet, GtidError> {
        let mut set = GtidSet::new();
        for one in text.split(',').map(str::trim).filter(|s| !s.is_empty()) {
            let mut parts = one.split(':').map(str::trim);
            let uuid = parse_uuid(parts.next().unwrap_or_default())?;
            let mut tag = Tag::NONE;
            let mut numbers = 0;
            for part in parts {
                if part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                    tag = Tag::new(part)?;
                    continue;
                }
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                set.insert_range(Tsid { uuid, tag }, parse_gno(first)?, parse_gno(last)? + 1);
                numbers += 1;
            }
            if numbers == 0 {
                return Err(GtidError(format!("`{}` names no transaction numbers", one.escape_debug())));
            }
        }
        Ok(set)
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}
serde_as_text!(Gtid);
serde_as_text!(GtidSet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_as_mysql_does() {
        let text = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee:7:red:500,d00f02a4-e597-11f1-80da-02fc00000001:1-5:a_very_long_tag_of_31_character:1:blue:1-2";
        let set: GtidSet = text.parse().unwrap();
        assert_eq!(set.to_string(), text);
        assert_eq!(set.count(), 10);
    }

    #[test]
    fn reads_unordered_overlapping_and_spaced_text() {
        let set: GtidSet = " AAAAAAAA-bbbb-cccc-dddd-eeeeeeeeeeee:5-9:1-3 ,\n aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee:4 "
            .parse()
            .unwrap();
        assert_eq!(set.to_string(), "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee:1-9");
    }

    #[test]
    fn refuses_what_is_no_set() {
        for text in [
            "x",
            "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee:0",
            "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee:9223372036854775807",
        ] {
            assert!(text.parse::<GtidSet>().is_err(), "{text}");
        }
    }
}
