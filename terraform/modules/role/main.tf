# What every role of mysql-pitr is: taken by EC2 instances, and allowed to list and decrypt its shards' part of one bucket. What else it may do is
# given by whoever calls this.

locals {
  prefix = var.prefix == "" ? "" : "${var.prefix}/"
}

resource "aws_iam_role" "this" {
  name               = var.name
  description        = var.description
  assume_role_policy = data.aws_iam_policy_document.trust.json
  tags               = var.tags
}

resource "aws_iam_instance_profile" "this" {
  name = var.name
  role = aws_iam_role.this.name
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

resource "aws_iam_role_policy" "further" {
  for_each = var.policies
  name     = each.key
  role     = aws_iam_role.this.id
  policy   = each.value
}

resource "aws_iam_role_policy" "shards" {
  name   = "shards"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.shards.json
}

data "aws_iam_policy_document" "shards" {
  # Without the right to list, S3 answers 403 for an object that is not there, and nobody could tell it from one that may not be read.
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

  statement {
    sid       = "Decrypt"
    actions   = ["kms:Decrypt"]
    resources = [var.kms_key_arn]

    condition {
      test     = "StringLike"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

# To make snapshots or volumes of what is encrypted.
resource "aws_iam_role_policy" "ebs_keys" {
  count  = length(var.ebs_key_arns) > 0 ? 1 : 0
  name   = "ebs-keys"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.ebs_keys[0].json
}

data "aws_iam_policy_document" "ebs_keys" {
  count = length(var.ebs_key_arns) > 0 ? 1 : 0

  statement {
    sid       = "Reencrypt"
    actions   = ["kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
    resources = var.ebs_key_arns

    condition {
      test     = "StringLike"
      variable = "kms:ViaService"
      values   = ["ec2.${var.region}.amazonaws.com"]
    }
  }

  # EBS keeps a grant while it copies, and while a volume is attached.
  statement {
    sid       = "GrantToEbs"
    actions   = ["kms:CreateGrant"]
    resources = var.ebs_key_arns

    condition {
      test     = "Bool"
      variable = "kms:GrantIsForAWSResource"
      values   = ["true"]
    }
  }
}
