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
        Call { verb: "put", key, means }
    }

    /// Of one object, which may be missing.
    pub(super) fn read(verb: &'static str, key: &'a str) -> Self {
        Call {
            verb,
            key,
            means: Means::Read,
        }
    }

    pub(super) fn other(verb: &'static str, key: &'a str) -> Self {
        Call {
            verb,
            key,
            means: Means::Other,
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
        write!(f, "{} {}", self.status, self.code)?;
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
            region: service.raw().headers().get(REGION_HEADER).map(str::to_owned),
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
            (_, "RequestTimeTooSkewed", _) => "set this machine's clock".into(),
            // Damaged or cut short on the way, or credentials that are just being replaced.
            (_, "RequestTimeout" | "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" | "ExpiredToken", _) => {
                return self.failed(call, answer);
            }
            (301 | 307, ..)
            | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _) => {
                match &answer.region {
                    Some(region) => format!("the bucket `{}` is in another region: set `region = \"{region}\"`", self.name),
                    None => format!("set `region` to that of the bucket `{}`", self.name),
                }
            }
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken", _) => {
                "check the access keys in the AWS configuration of the user that runs mysql-pitr".into()
            }
            (403, _, Means::Read) => format!(
                "give these credentials s3:GetObject on `{}/*`, and s3:ListBucket, without which a missing object is forbidden too",
                self.url
            ),
            (401 | 403, ..) => format!("give these credentials s3:PutObject and s3:ListBucket on `{}`", self.url),
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
    fn only_a_read_finds_nothing() {
        assert!(meaning(Call::read("get", "k"), 404, "NoSuchKey", None).is_not_found());
        assert!(matches!(
            meaning(Call::read("get", "k"), 404, "NoSuchBucket", None),
            StoreError::Refused { .. }
        ));
        assert!(matches!(
            meaning(Call::other("list", ""), 404, "Whatever", None),
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
                "403 AccessDenied; give these credentials s3:PutObject and s3:ListBucket on `s3://b/p`",
            ),
            (
                403,
                "RequestTimeTooSkewed",
                None,
                "403 RequestTimeTooSkewed; set this machine's clock",
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
