//! What S3 refuses, and what is to be done about it: answers as AWS was recorded to give them, for moto gives none of these.

use std::sync::Arc;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::config::{Credentials, Region, SharedCredentialsProvider};
use bytes::Bytes;
use mysql_pitr::{
    store::{
        Put, SharedStore, StoreError,
        s3::{S3Options, S3Store},
    },
    support::hint::render,
};
use tokio::io::AsyncReadExt;

use crate::support::{
    golden::assert_error,
    moto::{Moto, make_bucket},
    s3_proxy::{Answer, Manner, S3Proxy},
};

const ROLE: &str = "User: arn:aws:sts::111122223333:assumed-role/db/i-0abc is not authorized to perform: ";

enum Operation {
    Put,
    Get,
    List,
}

fn store(endpoint: &str, owner: Option<&str>) -> SharedStore {
    let keys = Credentials::new("AKIDTEST", "a-secret-that-nobody-prints", None, None, "tests");
    let shared = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .endpoint_url(endpoint)
        .build();
    let options = S3Options {
        bucket: "backups".into(),
        prefix: "mysql".into(),
        path_style: true,
        expected_bucket_owner: owner.map(str::to_owned),
        ..S3Options::default()
    };
    Arc::new(S3Store::new(&shared, options).unwrap())
}

async fn error(store: &SharedStore, operation: &Operation) -> StoreError {
    match operation {
        Operation::Put => store.put("s/k", Bytes::from_static(b"x"), Put::IfAbsent).await.err(),
        Operation::Get => store.get("s/k").await.err(),
        Operation::List => store.list("s/", None).await.err(),
    }
    .expect("it is refused")
}

#[tokio::test]
async fn every_refusal_names_what_is_missing_and_what_to_do() {
    let put_denied = format!(
        "{ROLE}s3:PutObject on resource: \"arn:aws:s3:::backups/mysql/s/k\" because no identity-based policy allows the s3:PutObject action"
    );
    let kms_denied = format!(
        "{ROLE}kms:GenerateDataKey on resource: arn:aws:kms:eu-west-1:111122223333:key/k because no identity-based policy allows the kms:GenerateDataKey action"
    );
    let denied_by_policy = format!(
        "{ROLE}s3:PutObject on resource: \"arn:aws:s3:::backups/mysql/s/k\" with an explicit deny in a resource-based policy"
    );
    let cases: [(&str, Operation, Answer, bool); 13] = [
        (
            "the bucket is in another region",
            Operation::Put,
            answer(
                400,
                "AuthorizationHeaderMalformed",
                "The authorization header is malformed; the region 'eu-west-1' is wrong; expecting 'eu-central-1'",
                "<Region>eu-central-1</Region>",
            ),
            false,
        ),
        (
            "the bucket is in another region, by a redirect",
            Operation::List,
            answer(
                301,
                "PermanentRedirect",
                "The bucket you are attempting to access must be addressed using the specified endpoint. Please send all future requests to this endpoint.",
                "<Endpoint>backups.s3.us-west-2.amazonaws.com</Endpoint><Bucket>backups</Bucket>",
            ),
            false,
        ),
        (
            "the credentials have expired",
            Operation::Put,
            answer(400, "ExpiredToken", "The provided token has expired.", ""),
            true,
        ),
        (
            "the clock is wrong",
            Operation::Put,
            answer(
                403,
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
                "<MaxAllowedSkewMilliseconds>900000</MaxAllowedSkewMilliseconds>",
            ),
            false,
        ),
        (
            "the KMS key is disabled",
            Operation::Put,
            answer(
                400,
                "KMS.DisabledException",
                "arn:aws:kms:eu-west-1:111122223333:key/k is disabled.",
                "",
            ),
            false,
        ),
        (
            "the KMS key is pending deletion",
            Operation::Get,
            answer(
                400,
                "KMS.KMSInvalidStateException",
                "arn:aws:kms:eu-west-1:111122223333:key/k is pending deletion.",
                "",
            ),
            false,
        ),
        (
            "putting is denied",
            Operation::Put,
            answer(403, "AccessDenied", put_denied.leak(), ""),
            false,
        ),
        (
            "the KMS key is denied",
            Operation::Put,
            answer(403, "AccessDenied", kms_denied.leak(), ""),
            false,
        ),
        (
            "reading is denied",
            Operation::Get,
            answer(403, "AccessDenied", "Access Denied", ""),
            false,
        ),
        (
            "listing is denied",
            Operation::List,
            answer(403, "AccessDenied", "Access Denied", ""),
            false,
        ),
        (
            "putting is denied by a policy",
            Operation::Put,
            answer(403, "AccessDenied", denied_by_policy.leak(), ""),
            false,
        ),
        (
            "the access key is unknown",
            Operation::List,
            answer(
                403,
                "InvalidAccessKeyId",
                "The AWS Access Key Id you provided does not exist in our records.",
                "",
            ),
            false,
        ),
        (
            "a lock without a checksum",
            Operation::Put,
            answer(
                400,
                "InvalidRequest",
                "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters",
                "",
            ),
            false,
        ),
    ];
    for (case, operation, answer, is_transient) in cases {
        let proxy = S3Proxy::answering(answer).await;
        let e = error(&store(&proxy.endpoint, None), &operation).await;
        assert_eq!(e.is_transient(), is_transient, "{case}: {e:?}");
        let said = render(&e.into());
        assert!(!said.contains("a-secret") && !said.contains("AKIDTEST"), "{said}");
        assert_error(&format!("S3: {case}"), &said, &[]);
    }
    let proxy = S3Proxy::answering(answer(403, "AccessDenied", "Access Denied", "")).await;
    let e = error(&store(&proxy.endpoint, Some("111122223333")), &Operation::Put).await;
    assert_error("S3: the bucket is somebody else's", &render(&e.into()), &[]);
}

fn answer(status: u16, code: &'static str, message: &'static str, more: &'static str) -> Answer {
    Answer {
        status,
        code,
        message,
        more,
    }
}

/// Credentials that expire in the middle stop nothing that goes on once they are renewed: the upload is begun again, and what was stored
/// before is read again.
#[tokio::test]
async fn an_upload_that_met_expired_credentials_can_be_begun_again() {
    let moto = Moto::start();
    make_bucket(&moto, "backups");
    let proxy = S3Proxy::start(&moto.endpoint, Manner::Plain).await;
    let store = store(&proxy.endpoint, None);
    let (small, part) = (Bytes::from_static(b"x"), Bytes::from(vec![7; 9 << 20]));
    store.put("s/small", small.clone(), Put::IfAbsent).await.unwrap();
    let mut upload = store.upload("s/large").await.unwrap();
    upload.write(part.clone()).await.unwrap();
    proxy.set(Manner::Answers(answer(
        400,
        "ExpiredToken",
        "The provided token has expired.",
        "",
    )));
    // Parts go on their way by themselves: the next write says it, or the end.
    let e = match upload.write(part.clone()).await {
        Ok(()) => upload.finish().await.unwrap_err(),
        Err(e) => e,
    };
    assert!(e.is_transient() && render(&e.into()).contains("renew the credentials"));
    let e = store.get("s/small").await.unwrap_err();
    assert!(e.is_transient() && render(&e.into()).contains("renew the credentials"));
    proxy.set(Manner::Plain);
    assert_eq!(store.get("s/small").await.unwrap().0, small);
    let mut upload = store.upload("s/large").await.unwrap();
    upload.write(part.clone()).await.unwrap();
    upload.finish().await.unwrap();
    let mut read = Vec::new();
    store.read("s/large", 0).await.unwrap().read_to_end(&mut read).await.unwrap();
    assert!(read == part);
}
