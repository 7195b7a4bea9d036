# For snapshots of EBS volumes. Instances, volumes and snapshots carry the tag mysql-pitr:shard; nothing without it is touched.

resource "aws_iam_role_policy" "ebs" {
  count  = var.ebs == null ? 0 : 1
  name   = "ebs"
  role   = aws_iam_role.agent.id
  policy = data.aws_iam_policy_document.ebs[0].json
}

data "aws_iam_policy_document" "ebs" {
  count = var.ebs == null ? 0 : 1

  # EC2 knows no narrower resource for these.
  statement {
    #checkov:skip=CKV_AWS_356:EC2's Describe calls take no resource; they change nothing.
    sid       = "Look"
    actions   = ["ec2:DescribeInstances", "ec2:DescribeSnapshots", "ec2:DescribeVolumes"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:Region"
      values   = compact([var.ebs.home_region, var.ebs.dr_region])
    }
  }

  statement {
    sid     = "SnapshotTheVolumes"
    actions = ["ec2:CreateSnapshot", "ec2:CreateSnapshots"]
    resources = [
      "${local.ec2}:${var.ebs.home_region}:*:instance/*",
      "${local.ec2}:${var.ebs.home_region}:*:volume/*",
    ]

    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/mysql-pitr:shard"
      values   = [var.shard]
    }
  }

  statement {
    sid       = "SnapshotTagged"
    actions   = ["ec2:CreateSnapshot", "ec2:CreateSnapshots"]
    resources = ["${local.ec2}:${var.ebs.home_region}::snapshot/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/mysql-pitr:shard"
      values   = [var.shard]
    }
  }

  statement {
    sid       = "TagWhatIsMade"
    actions   = ["ec2:CreateTags"]
    resources = [for region in compact([var.ebs.home_region, var.ebs.dr_region]) : "${local.ec2}:${region}::snapshot/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["CopySnapshot", "CreateSnapshot", "CreateSnapshots"]
    }
  }

  # IAM cannot know whether a snapshot is finished: this would delete the shard's good ones, too. A retention rule of the Recycle Bin
  # gives them back; undo = false withholds the right, and leaves what an agent could not finish to prune.
  dynamic "statement" {
    for_each = var.ebs.undo ? [true] : []

    content {
      sid       = "UndoTheUnfinished"
      actions   = ["ec2:DeleteSnapshot"]
      resources = [for region in compact([var.ebs.home_region, var.ebs.dr_region]) : "${local.ec2}:${region}::snapshot/*"]

      condition {
        test     = "StringEquals"
        variable = "ec2:ResourceTag/mysql-pitr:shard"
        values   = [var.shard]
      }
    }
  }
}

resource "aws_iam_role_policy" "ebs_copy" {
  count  = try(var.ebs.dr_region, null) == null ? 0 : 1
  name   = "ebs-copy"
  role   = aws_iam_role.agent.id
  policy = data.aws_iam_policy_document.ebs_copy[0].json
}

data "aws_iam_policy_document" "ebs_copy" {
  count = try(var.ebs.dr_region, null) == null ? 0 : 1

  statement {
    sid       = "CopyOurs"
    actions   = ["ec2:CopySnapshot"]
    resources = ["${local.ec2}:${var.ebs.home_region}::snapshot/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/mysql-pitr:shard"
      values   = [var.shard]
    }
  }

  statement {
    sid       = "CopyTagged"
    actions   = ["ec2:CopySnapshot"]
    resources = ["${local.ec2}:${var.ebs.dr_region}::snapshot/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/mysql-pitr:shard"
      values   = [var.shard]
    }
  }

  dynamic "statement" {
    for_each = length(var.ebs.kms_key_arns) > 0 ? [true] : []

    content {
      sid       = "ReencryptCopies"
      actions   = ["kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
      resources = var.ebs.kms_key_arns

      condition {
        test     = "StringLike"
        variable = "kms:ViaService"
        values   = ["ec2.*.amazonaws.com"]
      }
    }
  }

  # EBS keeps a grant while it copies.
  dynamic "statement" {
    for_each = length(var.ebs.kms_key_arns) > 0 ? [true] : []

    content {
      sid       = "GrantToEbs"
      actions   = ["kms:CreateGrant"]
      resources = var.ebs.kms_key_arns

      condition {
        test     = "Bool"
        variable = "kms:GrantIsForAWSResource"
        values   = ["true"]
      }
    }
  }
}
