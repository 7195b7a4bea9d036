# What `mysql-pitr recover` may do on the DR instance: read its shard's archive, and make, attach and remove volumes. It is attached to the instance for
# the recovery only (dr-instance, recovery_active). It needs nothing of the home region, and is made before the day: IAM itself may be out of
# reach then.

locals {
  prefix = var.prefix == "" ? "" : "${var.prefix}/"
  ec2    = "arn:${data.aws_partition.current.partition}:ec2:${var.region}"
}

data "aws_partition" "current" {}

module "role" {
  source = "../role"

  name         = var.name
  description  = "mysql-pitr recovery of shard ${var.shard}"
  shards       = [var.shard]
  bucket_arn   = var.bucket_arn
  prefix       = var.prefix
  kms_key_arn  = var.kms_key_arn
  region       = var.region
  ebs_key_arns = var.ebs_kms_key_arns
  tags         = var.tags

  policies = {
    archive = data.aws_iam_policy_document.archive.json
    ebs     = data.aws_iam_policy_document.ebs.json
  }
}

data "aws_iam_policy_document" "archive" {
  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = ["${var.bucket_arn}/${local.prefix}${var.shard}/*"]
  }

  # So that prune leaves alone what the recovery needs. It writes nothing else.
  statement {
    sid       = "TakeLeases"
    actions   = ["s3:PutObject"]
    resources = ["${var.bucket_arn}/${local.prefix}${var.shard}/leases/*"]
  }

  statement {
    sid       = "Encrypt"
    actions   = ["kms:GenerateDataKey"]
    resources = [var.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "ebs" {
  statement {
    #checkov:skip=CKV_AWS_356:EC2's Describe calls take no resource; they change nothing.
    sid       = "Look"
    actions   = ["ec2:DescribeVolumes"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:Region"
      values   = [var.region]
    }
  }

  statement {
    sid       = "FromOurSnapshots"
    actions   = ["ec2:CreateVolume"]
    resources = ["${local.ec2}::snapshot/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/mysql-pitr:shard"
      values   = [var.shard]
    }
  }

  statement {
    sid       = "MakeTaggedVolumes"
    actions   = ["ec2:CreateVolume"]
    resources = ["${local.ec2}:*:volume/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/mysql-pitr:shard"
      values   = [var.shard]
    }
  }

  statement {
    sid       = "TagWhatIsMade"
    actions   = ["ec2:CreateTags"]
    resources = ["${local.ec2}:*:volume/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["CreateVolume"]
    }
  }

  # Of this shard only, the instance too.
  statement {
    sid       = "AttachAndDetach"
    actions   = ["ec2:AttachVolume", "ec2:DetachVolume"]
    resources = ["${local.ec2}:*:instance/*", "${local.ec2}:*:volume/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/mysql-pitr:shard"
      values   = [var.shard]
    }
  }

  # What a recovery that failed had made.
  statement {
    sid       = "CleanUp"
    actions   = ["ec2:DeleteVolume"]
    resources = ["${local.ec2}:*:volume/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/mysql-pitr:shard"
      values   = [var.shard]
    }
  }
}
