# What `mysql-pitr prune` may do, in one region: look at everything of its shards, and delete it. Not for database nodes: whoever takes one of those
# over must not be able to delete the archive.

locals {
  prefix = var.prefix == "" ? "" : "${var.prefix}/"
}

resource "aws_iam_role" "prune" {
  name               = var.name
  description        = "mysql-pitr prune"
  assume_role_policy = data.aws_iam_policy_document.trust.json
  tags               = var.tags
}

resource "aws_iam_instance_profile" "prune" {
  name = var.name
  role = aws_iam_role.prune.name
  tags = var.tags
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy" "prune" {
  name   = "prune"
  role   = aws_iam_role.prune.id
  policy = data.aws_iam_policy_document.prune.json
}

data "aws_iam_policy_document" "prune" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [var.bucket_arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = [for shard in var.shards : "${local.prefix}${shard}/*"]
    }
  }

  # No s3:DeleteObjectVersion: what it deletes can be had back until the bucket's lifecycle rule removes it. No s3:BypassGovernanceRetention:
  # what Object Lock keeps stays. Nothing is written.
  statement {
    sid       = "ReadAndDelete"
    actions   = ["s3:DeleteObject", "s3:GetObject"]
    resources = [for shard in var.shards : "${var.bucket_arn}/${local.prefix}${shard}/*"]
  }

  # In a bucket with Object Lock a deletion only hides what is locked: prune looks first, and says what it leaves.
  statement {
    sid       = "SeeLocks"
    actions   = ["s3:GetObjectLegalHold", "s3:GetObjectRetention"]
    resources = [for shard in var.shards : "${var.bucket_arn}/${local.prefix}${shard}/*"]
  }

  statement {
    sid       = "SeeWhetherThereAreLocks"
    actions   = ["s3:GetBucketObjectLockConfiguration"]
    resources = [var.bucket_arn]
  }

  statement {
    sid       = "Decrypt"
    actions   = ["kms:Decrypt"]
    resources = [var.kms_key_arn]

    condition {
      test     = "StringLike"
      variable = "kms:ViaService"
      values   = ["s3.*.amazonaws.com"]
    }
  }
}

# Segments stay until the other region has their binlog sealed: prune looks.
resource "aws_iam_role_policy" "replica" {
  count  = var.replica_bucket_arn == null ? 0 : 1
  name   = "replica"
  role   = aws_iam_role.prune.id
  policy = data.aws_iam_policy_document.replica[0].json
}

data "aws_iam_policy_document" "replica" {
  count = var.replica_bucket_arn == null ? 0 : 1

  statement {
    sid       = "ListReplica"
    actions   = ["s3:ListBucket"]
    resources = [var.replica_bucket_arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = [for shard in var.shards : "${local.prefix}${shard}/*"]
    }
  }
}
