//! What the answers of S3 mean. The one place that knows status codes.

use std::{error::Error, fmt};

use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
};

use super::Bucket;
use crate::store::{Put, StoreError, key};

/// Tells the region of a bucket that was looked for in another.
const REGION_HEADER: &str = "x-amz-bucket-region";

/// What was asked for.
pub(super) struct Call<'a> {
    verb: &'static str,
    pub(super) key: &'a str,
    means: Means,
    /// The right that it takes.
    action: &'static str,
}

/// What a 404 and a 412 say about it.
#[derive(Clone, Copy)]
enum Means {
    IfAbsent,
    IfMatch,
    Read,
    Other,
}

impl<'a> Call<'a> {
    pub(super) fn put(key: &'a str, condition: &Put) -> Self {
        let means = match condition {
            Put::IfAbsent => Means::IfAbsent,
            Put::IfMatch(_) => Means::IfMatch,
        };
        Call::new("put", key, means, "s3:PutObject")
    }

    /// What comes before the completion of a large object.
    pub(super) fn part(key: &'a str) -> Self {
        Call::new("put", key, Means::Other, "s3:PutObject")
    }

    pub(super) fn list(prefix: &'a str) -> Self {
        Call::new("list", prefix, Means::Other, "s3:ListBucket")
    }

    /// Of one object, which may be missing.
    pub(super) fn read(verb: &'static str, key: &'a str) -> Self {
        Call::new(verb, key, Means::Read, "s3:GetObject")
    }

    pub(super) fn delete(key: &'a str) -> Self {
        Call::new("delete", key, Means::Read, "s3:DeleteObject")
    }

    pub(super) fn abort(key: &'a str) -> Self {
        Call::new("abort the upload of", key, Means::Read, "s3:AbortMultipartUpload")
    }

    fn new(verb: &'static str, key: &'a str, means: Means, action: &'static str) -> Self {
        Call {
            verb,
            key,
            means,
            action,
        }
    }
}

/// An answer that is no success.
#[derive(Debug, Default)]
struct Answer {
    status: u16,
    code: String,
    message: String,
    request_id: Option<String>,
    region: Option<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        // The answer to a HEAD has no body to say more in.
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message.trim_end_matches('.'))?;
        }
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

impl Error for Answer {}

impl Bucket {
    pub(super) fn error<E>(&self, call: &Call<'_>, error: SdkError<E>) -> StoreError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let SdkError::ServiceError(service) = &error else {
            return self.failed(call, error);
        };
        let metadata = service.err().meta();
        let answer = Answer {
            status: service.raw().status().as_u16(),
            code: metadata.code().unwrap_or_default().to_owned(),
            message: metadata.message().unwrap_or_default().to_owned(),
            request_id: metadata.request_id().map(str::to_owned),
            region: service.raw().headers().get(REGION_HEADER).map(str::to_owned).or_else(|| {
                let body = std::str::from_utf8(service.raw().body().bytes()?).ok()?;
                Some(between(body, "<Region>", "</Region>")?.to_owned())
            }),
        };
        self.meaning(call, answer)
    }

    pub(super) fn failed(&self, call: &Call<'_>, source: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
        StoreError::Failed {
            url: self.url.clone(),
            operation: key::operation(call.verb, call.key),
            source: source.into(),
        }
    }

    fn meaning(&self, call: &Call<'_>, answer: Answer) -> StoreError {
        let (url, key) = (self.url.clone(), call.key.to_owned());
        let remedy = match (answer.status, answer.code.as_str(), call.means) {
            (412, _, Means::IfAbsent) => return StoreError::AlreadyExists { url, key },
            (412, _, Means::IfMatch) => return StoreError::Precondition { url, key },
            (_, "NoSuchBucket", _) => format!("create the bucket `{}`, or correct the URL", self.name),
            (404, _, Means::IfMatch) => return StoreError::Precondition { url, key },
            (404, _, Means::Read) => return StoreError::NotFound { url, key },
            // Completed by an attempt whose answer was lost, or aborted by a lifecycle rule: begun again, the upload finds out.
            (_, "NoSuchUpload", _) => return self.failed(call, answer),
            (_, "RequestTimeTooSkewed", _) => "set this machine's clock (chronyc tracking, timedatectl): it is more than 15 minutes off".into(),
            (_, "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired", _) => {
                let remedy = "renew the credentials; those of a role are renewed by themselves, those of a file or the environment take a restart";
                return self.failed(call, format!("{answer}; {remedy}"));
            }
            // Damaged or cut short on the way.
            (_, "RequestTimeout" | "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch", _) => {
                return self.failed(call, answer);
            }
            (_, code, _) if code.contains("Throttling") => return self.failed(call, answer),
            (_, code, _) if code.starts_with("KMS.") => {
                "enable the KMS key that encrypts the objects (or cancel its deletion), or name another as `kms_key_id` for what is written from now on"
                    .into()
            }
            // To a HEAD that is signed for another region the answer is a 400 without a body.
            (400, "", _) if answer.region.is_some() => self.elsewhere(answer.region.as_deref()),
            (301 | 307, ..)
            | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _) => {
                self.elsewhere(answer.region.as_deref())
            }
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken", _) => {
                "check the access keys in the AWS configuration of the user that runs mysql-pitr".into()
            }
            (401 | 403, ..) => self.missing_right(call, &answer),
            (501, ..) => "this server lacks what mysql-pitr needs; `checksums = \"when_required\"` asks for less".into(),
            (408 | 409 | 429 | 500.., ..) => return self.failed(call, answer),
            (400..=499, ..) => "this will not change by itself".into(),
            _ => return self.failed(call, answer),
        };
        StoreError::Refused {
            url,
            operation: key::operation(call.verb, call.key),
            reason: format!("{answer}; {remedy}"),
        }
    }

    fn elsewhere(&self, told: Option<&str>) -> String {
        match told {
            Some(region) => format!("the bucket `{}` is in another region: set `region = \"{region}\"`", self.name),
            None => format!("set `region` to that of the bucket `{}`", self.name),
        }
    }

    /// What to allow. AWS mostly says which right is missing: it may be another service's, such as kms:GenerateDataKey.
    fn missing_right(&self, call: &Call<'_>, answer: &Answer) -> String {
        let objects = self.url.strip_prefix("s3://").unwrap_or_default();
        let mut remedy = match between(&answer.message, "not authorized to perform: ", " ") {
            Some(action) if answer.message.contains("with an explicit deny") => {
                format!("a policy denies {action}: change it, or use other credentials")
            }
            Some(action) => format!("allow these credentials {action}"),
            None if call.action == "s3:ListBucket" => {
                format!("allow these credentials s3:ListBucket on the bucket `{}`", self.name)
            }
            None if call.action == "s3:GetObject" => format!(
                "allow these credentials s3:GetObject on `{objects}/*`, and s3:ListBucket, without which a missing object is forbidden too"
            ),
            None => format!("allow these credentials {} on `{objects}/*`", call.action),
        };
        if let Some(owner) = &self.owner {
            remedy += &format!("; a bucket that is not account {owner}'s (`expected_bucket_owner`) refuses everything, too");
        }
        remedy
    }
}

/// The text between two others.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    Some(
        rest.split_once(after)
            .map_or(rest, |(found, _)| found)
            .trim_end_matches(['.', ',']),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Version,
        s3::{S3Options, S3Store},
    };

    fn meaning(call: Call<'_>, status: u16, code: &str, region: Option<&str>) -> StoreError {
        let shared = aws_config::SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .build();
        let options = S3Options {
            bucket: "b".into(),
            prefix: "p".into(),
            region: Some("eu-west-1".into()),
            ..Default::default()
        };
        let store = S3Store::new(&shared, options).unwrap();
        let answer = Answer {
            status,
            code: code.into(),
            region: region.map(str::to_owned),
            ..Answer::default()
        };
        store.bucket.meaning(&call, answer)
    }

    fn create() -> Call<'static> {
        Call::put("k", &Put::IfAbsent)
    }

    fn replace() -> Call<'static> {
        Call::put("k", &Put::IfMatch(Version("e".into())))
    }

    #[test]
    fn a_lost_condition_is_told_apart_from_a_conflict_that_may_be_tried_again() {
        assert!(matches!(
            meaning(create(), 412, "PreconditionFailed", None),
            StoreError::AlreadyExists { .. }
        ));
        assert!(matches!(
            meaning(replace(), 412, "PreconditionFailed", None),
            StoreError::Precondition { .. }
        ));
        assert!(matches!(
            meaning(replace(), 404, "NoSuchKey", None),
            StoreError::Precondition { .. }
        ));
        assert!(meaning(create(), 409, "ConditionalRequestConflict", None).is_transient());
        assert!(meaning(create(), 404, "NoSuchUpload", None).is_transient());
    }

    #[test]
    fn expired_credentials_may_be_renewed_and_a_disabled_key_may_not() {
        let expired = meaning(create(), 400, "ExpiredToken", None);
        assert!(expired.is_transient() && format!("{:#}", anyhow::Error::from(expired)).contains("renew the credentials"));
        assert!(meaning(create(), 400, "KMS.ThrottlingException", None).is_transient());
        assert!(!meaning(create(), 400, "KMS.DisabledException", None).is_transient());
    }

    #[test]
    fn only_a_read_finds_nothing() {
        assert!(meaning(Call::read("get", "k"), 404, "NoSuchKey", None).is_not_found());
        assert!(matches!(
            meaning(Call::read("get", "k"), 404, "NoSuchBucket", None),
            StoreError::Refused { .. }
        ));
        assert!(matches!(
            meaning(Call::list(""), 404, "Whatever", None),
            StoreError::Refused { .. }
        ));
    }

    #[test]
    fn what_may_pass_is_transient() {
        for (status, code) in [
            (500, "InternalError"),
            (503, "SlowDown"),
            (429, ""),
            (400, "RequestTimeout"),
            (400, "BadDigest"),
            (200, "InternalError"),
        ] {
            assert!(meaning(create(), status, code, None).is_transient(), "{status} {code}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for (status, code, region, text) in [
            (
                301,
                "PermanentRedirect",
                Some("us-west-2"),
                "301 PermanentRedirect; the bucket `b` is in another region: set `region = \"us-west-2\"`",
            ),
            (
                400,
                "",
                Some("us-west-2"),
                "400; the bucket `b` is in another region: set `region = \"us-west-2\"`",
            ),
            (
                400,
                "AuthorizationHeaderMalformed",
                None,
                "400 AuthorizationHeaderMalformed; set `region` to that of the bucket `b`",
            ),
            (
                404,
                "NoSuchBucket",
                None,
                "404 NoSuchBucket; create the bucket `b`, or correct the URL",
            ),
            (
                403,
                "AccessDenied",
                None,
                "403 AccessDenied; allow these credentials s3:PutObject on `b/p/*`",
            ),
            (
                403,
                "RequestTimeTooSkewed",
                None,
                "403 RequestTimeTooSkewed; set this machine's clock (chronyc tracking, timedatectl): it is more than 15 minutes off",
            ),
            (
                400,
                "KeyTooLongError",
                None,
                "400 KeyTooLongError; this will not change by itself",
            ),
        ] {
            let error = meaning(create(), status, code, region);
            assert!(!error.is_transient(), "{code}");
            assert_eq!(error.to_string(), format!("store s3://b/p refused to put k: {text}"));
        }
    }
}
