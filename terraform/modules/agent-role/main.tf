# What the agent on a database node may do: create under its own shard's prefix, and nothing else. It deletes nothing in the bucket, and
# cannot set or bypass a retention.

data "aws_partition" "current" {}

locals {
  prefix   = var.prefix == "" ? "" : "${var.prefix}/"
  objects  = "${var.bucket_arn}/${local.prefix}${var.shard}"
  replicas = var.replica == null ? null : "${var.replica.bucket_arn}/${local.prefix}${var.shard}"
  ec2      = "arn:${data.aws_partition.current.partition}:ec2"
}

module "role" {
  source = "../role"

  name         = var.name
  description  = "mysql-pitr agent of shard ${var.shard}"
  shards       = [var.shard]
  bucket_arn   = var.bucket_arn
  prefix       = var.prefix
  kms_key_arn  = var.kms_key_arn
  ebs_key_arns = try(var.ebs.dr_region, null) == null ? [] : var.ebs.kms_key_arns
  tags         = var.tags

  policies = merge(
    { archive = data.aws_iam_policy_document.archive.json },
    var.object_lock_days == null ? {} : { object-lock = data.aws_iam_policy_document.object_lock[0].json },
    var.replica == null ? {} : { replica = data.aws_iam_policy_document.replica[0].json },
    try(var.replica.written_by_agent, false) ? { replica-write = data.aws_iam_policy_document.replica_write[0].json } : {},
    try(var.replica.fenced, false) ? { replica-fence = data.aws_iam_policy_document.replica_fence[0].json } : {},
    var.ebs == null ? {} : { ebs = data.aws_iam_policy_document.ebs[0].json },
    try(var.ebs.dr_region, null) == null ? {} : { ebs-copy = data.aws_iam_policy_document.ebs_copy[0].json },
  )
}

data "aws_iam_policy_document" "archive" {
  # A PUT can write over an object: the bucket's policy (OnlyConditionalWrites, WriteHistoryOnce) sees to it that it does not.
  statement {
    sid       = "CreateAndRead"
    actions   = ["s3:GetObject", "s3:PutObject"]
    resources = ["${local.objects}/*"]
  }

  # Of its own uploads that it gives up: what is visible is not touched by it.
  statement {
    sid       = "GiveUpload"
    actions   = ["s3:AbortMultipartUpload"]
    resources = ["${local.objects}/*"]
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

# Where the agents lock what they write ([store] object_lock). A default retention of the bucket needs no such right. A lock can be lengthened by it,
# up to this many days from now, and never be shortened.
data "aws_iam_policy_document" "object_lock" {
  count = var.object_lock_days == null ? 0 : 1

  statement {
    sid       = "LockForAWhile"
    actions   = ["s3:PutObjectRetention"]
    resources = concat(["${local.objects}/*"], var.replica == null ? [] : ["${local.replicas}/*"])

    condition {
      test     = "NumericLessThanEquals"
      variable = "s3:object-lock-remaining-retention-days"
      values   = [var.object_lock_days]
    }
  }
}

# The DR region's bucket: looked at always, to know how far it is behind.
data "aws_iam_policy_document" "replica" {
  count = var.replica == null ? 0 : 1

  statement {
    sid       = "ListReplica"
    actions   = ["s3:ListBucket"]
    resources = [var.replica.bucket_arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["${local.prefix}${var.shard}/*"]
    }
  }

  statement {
    sid       = "ReadReplica"
    actions   = ["s3:GetObject"]
    resources = ["${local.replicas}/*"]
  }

  statement {
    sid       = "DecryptReplica"
    actions   = ["kms:Decrypt"]
    resources = [var.replica.kms_key_arn]

    condition {
      test     = "StringLike"
      variable = "kms:ViaService"
      values   = ["s3.*.amazonaws.com"]
    }
  }
}

# Written only where the store has no replication of its own: replication = "agent".
data "aws_iam_policy_document" "replica_write" {
  count = try(var.replica.written_by_agent, false) ? 1 : 0

  statement {
    sid       = "CreateReplica"
    actions   = ["s3:AbortMultipartUpload", "s3:PutObject"]
    resources = ["${local.replicas}/*"]
  }

  statement {
    sid       = "EncryptReplica"
    actions   = ["kms:GenerateDataKey"]
    resources = [var.replica.kms_key_arn]

    condition {
      test     = "StringLike"
      variable = "kms:ViaService"
      values   = ["s3.*.amazonaws.com"]
    }
  }
}

# To take over from the other bucket is to put a fence there, where it can be reached.
data "aws_iam_policy_document" "replica_fence" {
  count = try(var.replica.fenced, false) ? 1 : 0

  statement {
    sid       = "FenceReplica"
    actions   = ["s3:PutObject"]
    resources = ["${local.replicas}/fences/*"]
  }

  statement {
    sid       = "EncryptFence"
    actions   = ["kms:GenerateDataKey"]
    resources = [var.replica.kms_key_arn]

    condition {
      test     = "StringLike"
      variable = "kms:ViaService"
      values   = ["s3.*.amazonaws.com"]
    }
  }
}
