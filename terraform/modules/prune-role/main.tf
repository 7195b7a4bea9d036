# What `mysql-pitr prune` may do, in one region: look at everything of its shards, and delete it. Not for database nodes: whoever takes one of those
# over must not be able to delete the archive.

data "aws_partition" "current" {}

locals {
  prefix = var.prefix == "" ? "" : "${var.prefix}/"
  ec2    = "arn:${data.aws_partition.current.partition}:ec2"
}

module "role" {
  source = "../role"

  name        = var.name
  description = "mysql-pitr prune"
  shards      = var.shards
  bucket_arn  = var.bucket_arn
  prefix      = var.prefix
  kms_key_arn = var.kms_key_arn
  tags        = var.tags

  policies = merge(
    { prune = data.aws_iam_policy_document.prune.json },
    var.replica_bucket_arn == null ? {} : { replica = data.aws_iam_policy_document.replica[0].json },
    var.ebs_region == null ? {} : { ebs = data.aws_iam_policy_document.ebs[0].json },
  )
}

data "aws_iam_policy_document" "prune" {
  # No s3:DeleteObjectVersion: what it deletes can be had back until the bucket's lifecycle rule removes it. No s3:BypassGovernanceRetention:
  # what Object Lock keeps stays.
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
}

# Segments stay until the other region has their binlog sealed, and EBS snapshots until it has their record: prune looks.
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

# The EBS snapshots of what it deletes, in its own region.
data "aws_iam_policy_document" "ebs" {
  count = var.ebs_region == null ? 0 : 1

  statement {
    #checkov:skip=CKV_AWS_356:EC2's Describe calls take no resource; they change nothing.
    sid       = "Look"
    actions   = ["ec2:DescribeSnapshots"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:Region"
      values   = [var.ebs_region]
    }
  }

  statement {
    sid       = "DeleteSnapshots"
    actions   = ["ec2:DeleteSnapshot"]
    resources = ["${local.ec2}:${var.ebs_region}::snapshot/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/mysql-pitr:shard"
      values   = var.shards
    }
  }

  # A record, out of the way of recoveries, until its snapshots are gone. It writes nothing else.
  statement {
    sid       = "PutAside"
    actions   = ["s3:PutObject"]
    resources = [for shard in var.shards : "${var.bucket_arn}/${local.prefix}${shard}/pruned/*"]
  }

  statement {
    sid       = "Encrypt"
    actions   = ["kms:GenerateDataKey"]
    resources = [var.kms_key_arn]

    condition {
      test     = "StringLike"
      variable = "kms:ViaService"
      values   = ["s3.*.amazonaws.com"]
    }
  }
}
