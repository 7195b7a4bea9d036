//! The signed request that a copy between regions carries: by it the destination asks the source for the snapshot in the caller's name.
//! EC2 wants it where the snapshot is encrypted. Other SDKs make it by themselves; Rust's does not.

use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use aws_sdk_ec2::config::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};

/// EC2's API of today.
const API_VERSION: &str = "2016-11-15";
/// It is used at once; this is for clocks that differ.
const VALIDITY: Duration = Duration::from_secs(3600);

/// A copy that is asked for.
pub(super) struct Copy<'a> {
    pub snapshot_id: &'a str,
    pub from: &'a str,
    pub to: &'a str,
}

/// `endpoint`: the source region's, without a path.
pub(super) fn url(copy: &Copy<'_>, endpoint: &str, credentials: Credentials, at: SystemTime) -> anyhow::Result<String> {
    let Copy { snapshot_id, from, to } = copy;
    // Ids and regions need no escapes.
    let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if ![snapshot_id, from, to].into_iter().all(|text| is_plain(text)) {
        return Err(anyhow!(
            "`{snapshot_id}`, `{from}` and `{to}` are not a snapshot and two regions"
        ));
    }
    let endpoint = endpoint.trim_end_matches('/');
    let unsigned = format!(
        "{endpoint}/?Action=CopySnapshot&DestinationRegion={to}&SourceRegion={from}&SourceSnapshotId={snapshot_id}&Version={API_VERSION}"
    );
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(VALIDITY);
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(from)
        .name("ec2")
        .time(at)
        .settings(settings)
        .build()?
        .into();
    let request = SignableRequest::new("GET", &unsigned, std::iter::empty(), SignableBody::Bytes(&[]))?;
    let (instructions, _) = sign(request, &params)?.into_parts();
    let mut url = unsigned;
    for (name, value) in instructions.params() {
        url.push_str(&format!("&{name}={}", escaped(value)));
    }
    Ok(url)
}

/// As RFC 3986 has it.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(token: Option<&str>) -> Credentials {
        Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG", token.map(str::to_owned), None, "test")
    }

    const COPY: Copy<'_> = Copy {
        snapshot_id: "snap-0123",
        from: "eu-west-1",
        to: "eu-central-1",
    };

    #[test]
    fn is_signed_for_the_source_region() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let url = url(&COPY, "https://ec2.eu-west-1.amazonaws.com/", keys(Some("to/ken=")), at).unwrap();
        let begin = "https://ec2.eu-west-1.amazonaws.com/?Action=CopySnapshot&DestinationRegion=eu-central-1&SourceRegion=eu-west-1\
                     &SourceSnapshotId=snap-0123&Version=2016-11-15&";
        assert!(url.starts_with(begin), "{url}");
        for part in [
            "&X-Amz-Credential=AKIDEXAMPLE%2F20231114%2Feu-west-1%2Fec2%2Faws4_request",
            "&X-Amz-Date=20231114T221320Z",
            "&X-Amz-Expires=3600",
            "&X-Amz-SignedHeaders=host",
            "&X-Amz-Security-Token=to%2Fken%3D",
        ] {
            assert!(url.contains(part), "{part} is not in {url}");
        }
        let signature = url.split("X-Amz-Signature=").nth(1).unwrap();
        assert!(signature.len() >= 64 && !url.contains("wJalr"), "{url}");
    }

    #[test]
    fn nothing_is_smuggled_into_it() {
        let evil = Copy {
            snapshot_id: "snap-1&Action=DeleteSnapshot",
            ..COPY
        };
        assert!(url(&evil, "https://e", keys(None), SystemTime::UNIX_EPOCH).is_err());
    }
}
