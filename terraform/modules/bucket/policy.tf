# What nobody may do here, whatever their role allows. Nothing is allowed by it.

resource "aws_s3_bucket_policy" "archive" {
  bucket     = aws_s3_bucket.archive.id
  policy     = data.aws_iam_policy_document.bucket.json
  depends_on = [aws_s3_bucket_public_access_block.archive]
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "OnlyTls"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.archive.arn, "${aws_s3_bucket.archive.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  statement {
    sid       = "OnlyThisAccount"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.archive.arn, "${aws_s3_bucket.archive.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "StringNotEquals"
      variable = "aws:PrincipalAccount"
      values   = [local.account_id]
    }

    # S3 itself, on our behalf.
    condition {
      test     = "Bool"
      variable = "aws:PrincipalIsAWSService"
      values   = ["false"]
    }
  }

  # mysql-pitr writes with If-None-Match or If-Match, always. Who has the agent's role and does not, would write over the archive.
  statement {
    sid       = "OnlyConditionalWrites"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.archive.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["true"]
    }

    condition {
      test     = "Null"
      variable = "s3:if-match"
      values   = ["true"]
    }

    # The beginning and the parts of a multipart upload take no condition; its completion does.
    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["true"]
    }
  }

  # What history is made of never changes: binlogs, segments, timelines, the data of snapshots. Records of snapshots and leases do.
  statement {
    sid     = "WriteHistoryOnce"
    effect  = "Deny"
    actions = ["s3:PutObject"]
    resources = [
      "${aws_s3_bucket.archive.arn}/${local.prefix}*/2???/*/*/*/*",
      "${aws_s3_bucket.archive.arn}/${local.prefix}*/segments/*",
      "${aws_s3_bucket.archive.arn}/${local.prefix}*/snapshots/*/datadir.tar*",
      "${aws_s3_bucket.archive.arn}/${local.prefix}*/timelines/*",
    ]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["true"]
    }

    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["true"]
    }
  }

  # Only this region's key: an object under another one could be read neither here nor where it is copied to. Who names no encryption gets it.
  statement {
    sid       = "OnlyThisKey"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.archive.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Null"
      variable = "s3:x-amz-server-side-encryption"
      values   = ["false"]
    }

    # Also true where no key is named: that would be AWS's own.
    condition {
      test     = "StringNotEquals"
      variable = "s3:x-amz-server-side-encryption-aws-kms-key-id"
      values   = [aws_kms_key.archive.arn]
    }
  }

  # The fence of a failover: nothing comes from the other region any more. It asks this region only.
  dynamic "statement" {
    for_each = var.accept_replicas ? [] : [true]

    content {
      sid       = "NoReplicas"
      effect    = "Deny"
      actions   = ["s3:ReplicateDelete", "s3:ReplicateObject", "s3:ReplicateTags"]
      resources = ["${aws_s3_bucket.archive.arn}/*"]

      principals {
        type        = "*"
        identifiers = ["*"]
      }
    }
  }
}
