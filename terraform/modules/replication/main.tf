# What is written to one bucket is copied by S3 to the other region's; what is deleted is not.

resource "aws_s3_bucket_replication_configuration" "this" {
  bucket = var.source_bucket.bucket
  role   = aws_iam_role.replication.arn

  rule {
    id       = "everything"
    priority = 0
    status   = var.enabled ? "Enabled" : "Disabled"
    filter {}

    # Off, and it stays off. Each region prunes itself, by the leases in its own bucket: a marker that came from elsewhere would hide what a
    # recovery is reading, and a deletion that should never have been would reach the copy that is there for that very case.
    delete_marker_replication {
      status = "Disabled"
    }

    source_selection_criteria {
      sse_kms_encrypted_objects {
        status = "Enabled"
      }
    }

    destination {
      bucket        = var.destination_bucket.bucket_arn
      storage_class = var.storage_class

      encryption_configuration {
        replica_kms_key_id = var.destination_bucket.kms_key_arn
      }

      # 15 minutes is the only value that S3 knows, and what it promises for 99.9 % of the objects of a month.
      replication_time {
        status = "Enabled"

        time {
          minutes = 15
        }
      }

      metrics {
        status = "Enabled"

        event_threshold {
          minutes = 15
        }
      }
    }
  }
}

resource "aws_iam_role" "replication" {
  name               = "${var.source_bucket.bucket}-replication"
  assume_role_policy = data.aws_iam_policy_document.replication_trust.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "replication" {
  name   = "replicate"
  role   = aws_iam_role.replication.id
  policy = data.aws_iam_policy_document.replication.json
}

data "aws_caller_identity" "current" {}

data "aws_region" "source" {}

data "aws_iam_policy_document" "replication_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["s3.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [var.source_bucket.bucket_arn]
    }
  }
}

data "aws_iam_policy_document" "replication" {
  statement {
    sid       = "FindWhatToCopy"
    actions   = ["s3:GetReplicationConfiguration", "s3:ListBucket"]
    resources = [var.source_bucket.bucket_arn]
  }

  statement {
    sid = "ReadSource"
    actions = [
      "s3:GetObjectLegalHold",
      "s3:GetObjectRetention",
      "s3:GetObjectVersionAcl",
      "s3:GetObjectVersionForReplication",
      "s3:GetObjectVersionTagging",
    ]
    resources = ["${var.source_bucket.bucket_arn}/*"]
  }

  # No s3:ReplicateDelete: see delete_marker_replication.
  statement {
    sid       = "WriteCopies"
    actions   = ["s3:ReplicateObject", "s3:ReplicateTags"]
    resources = ["${var.destination_bucket.bucket_arn}/*"]
  }

  statement {
    sid       = "Decrypt"
    actions   = ["kms:Decrypt"]
    resources = [var.source_bucket.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${data.aws_region.source.region}.amazonaws.com"]
    }
  }

  statement {
    sid       = "Encrypt"
    actions   = ["kms:Encrypt", "kms:GenerateDataKey"]
    resources = [var.destination_bucket.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.destination_region}.amazonaws.com"]
    }
  }
}
