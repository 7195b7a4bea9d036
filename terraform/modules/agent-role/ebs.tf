# For snapshots of EBS volumes. Instances, volumes and snapshots carry the tag mysql-pitr:shard; nothing without it is touched.

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
}
