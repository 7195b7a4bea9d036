# One region's half of the archive: a bucket and its key.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

locals {
  account_id = data.aws_caller_identity.current.account_id
  # Before every key of the archive; empty, or with a slash at its end.
  prefix = var.prefix == "" ? "" : "${var.prefix}/"
}

resource "aws_s3_bucket" "archive" {
  #checkov:skip=CKV2_AWS_62:Nothing listens. Agents look into the bucket, for stores other than AWS have no notifications.
  #checkov:skip=CKV_AWS_144:Replication is set up by the module archive, for the home region's bucket alone.
  #checkov:skip=CKV_AWS_18:Access logs go to the bucket that access_log_bucket names; who sets none has CloudTrail data events, or no need of them.
  bucket              = var.bucket
  object_lock_enabled = var.object_lock != null
  force_destroy       = false
  tags                = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

# Without it an object that is written over or deleted is gone. Replication and Object Lock ask for it, too.
resource "aws_s3_bucket_versioning" "archive" {
  bucket = aws_s3_bucket.archive.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "archive" {
  bucket = aws_s3_bucket.archive.id

  rule {
    # One call to KMS for many objects: segments come every second.
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.archive.arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "archive" {
  bucket                  = aws_s3_bucket.archive.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

# No access control lists: whoever writes an object, it belongs to the bucket's owner.
resource "aws_s3_bucket_ownership_controls" "archive" {
  bucket = aws_s3_bucket.archive.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_logging" "archive" {
  count         = var.access_log_bucket == null ? 0 : 1
  bucket        = aws_s3_bucket.archive.id
  target_bucket = var.access_log_bucket
  target_prefix = "${var.bucket}/"
}

# For new versions. It holds what prune would delete early, and what somebody deletes who may not.
resource "aws_s3_bucket_object_lock_configuration" "archive" {
  count  = try(var.object_lock.days, null) == null ? 0 : 1
  bucket = aws_s3_bucket.archive.id

  rule {
    default_retention {
      mode = var.object_lock.mode
      days = var.object_lock.days
    }
  }

  depends_on = [aws_s3_bucket_versioning.archive]
}
