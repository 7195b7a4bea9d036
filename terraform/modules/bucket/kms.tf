# A key of this region: what lies here can be read with nothing of another region.
resource "aws_kms_key" "archive" {
  description             = "mysql-pitr archive ${var.bucket}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.key.json
  tags                    = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "archive" {
  name          = "alias/${var.bucket}"
  target_key_id = aws_kms_key.archive.key_id
}

# Whom IAM's policies of this account let use it: the roles of the other modules. This is AWS's own default.
data "aws_iam_policy_document" "key" {
  #checkov:skip=CKV_AWS_109:A key policy speaks of its own key, which it can only name as *.
  #checkov:skip=CKV_AWS_111:A key policy speaks of its own key, which it can only name as *.
  #checkov:skip=CKV_AWS_356:A key policy speaks of its own key, which it can only name as *.
  statement {
    sid       = "LetIamDecide"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.current.partition}:iam::${local.account_id}:root"]
    }
  }
}
