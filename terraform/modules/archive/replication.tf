locals {
  home_arn = module.home.bucket_arn
  dr_arn   = module.dr.bucket_arn
}

resource "aws_s3_bucket_replication_configuration" "home" {
  provider = aws.home
  bucket   = module.home.bucket
  role     = aws_iam_role.replication.arn

  rule {
    id       = "everything"
    priority = 0
    status   = var.replication_enabled ? "Enabled" : "Disabled"
    filter {}

    # Off, and it stays off. Each region prunes itself, by the leases in its own bucket: a marker that came from home would hide what a recovery
    # over there is reading, and a deletion that should never have been would reach the copy that is there for that very case.
    delete_marker_replication {
      status = "Disabled"
    }

    source_selection_criteria {
      sse_kms_encrypted_objects {
        status = "Enabled"
      }
    }

    destination {
      bucket        = local.dr_arn
      storage_class = var.dr_storage_class

      encryption_configuration {
        replica_kms_key_id = module.dr.kms_key_arn
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
  provider           = aws.home
  name               = "${var.home_bucket}-replication"
  assume_role_policy = data.aws_iam_policy_document.replication_trust.json
  tags               = var.tags
}

resource "aws_iam_role_policy" "replication" {
  provider = aws.home
  name     = "replicate"
  role     = aws_iam_role.replication.id
  policy   = data.aws_iam_policy_document.replication.json
}

data "aws_caller_identity" "current" {
  provider = aws.home
}

data "aws_region" "home" {
  provider = aws.home
}

data "aws_region" "dr" {
  provider = aws.dr
}

data "aws_iam_policy_document" "replication_trust" {
  provider = aws.home

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
      values   = [local.home_arn]
    }
  }
}

data "aws_iam_policy_document" "replication" {
  provider = aws.home

  statement {
    sid       = "FindWhatToCopy"
    actions   = ["s3:GetReplicationConfiguration", "s3:ListBucket"]
    resources = [local.home_arn]
  }

  statement {
    sid = "ReadAtHome"
    actions = [
      "s3:GetObjectLegalHold",
      "s3:GetObjectRetention",
      "s3:GetObjectVersionAcl",
      "s3:GetObjectVersionForReplication",
      "s3:GetObjectVersionTagging",
    ]
    resources = ["${local.home_arn}/*"]
  }

  # No s3:ReplicateDelete: see delete_marker_replication.
  statement {
    sid       = "WriteCopies"
    actions   = ["s3:ReplicateObject", "s3:ReplicateTags"]
    resources = ["${local.dr_arn}/*"]
  }

  statement {
    sid       = "Decrypt"
    actions   = ["kms:Decrypt"]
    resources = [module.home.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${data.aws_region.home.region}.amazonaws.com"]
    }
  }

  statement {
    sid       = "Encrypt"
    actions   = ["kms:Encrypt", "kms:GenerateDataKey"]
    resources = [module.dr.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${data.aws_region.dr.region}.amazonaws.com"]
    }
  }
}
