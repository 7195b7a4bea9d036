resource "aws_s3_bucket_lifecycle_configuration" "archive" {
  #checkov:skip=CKV_AWS_300:The first rule does it; the check does not see rules beside dynamic ones.
  bucket                                 = aws_s3_bucket.archive.id
  transition_default_minimum_object_size = "all_storage_classes_128K"

  # Parts that an agent left when it died are invisible, and paid for.
  rule {
    id     = "unfinished-uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = var.abort_uploads_days
    }
  }

  # What prune deleted, and what records were before they changed. Locked versions wait for their lock's end.
  rule {
    id     = "old-versions"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  # Sealed binlogs (years begin with 2) and snapshots are read whole, rarely, and then at once. Not segments: they go within hours.
  dynamic "rule" {
    for_each = var.transition == null ? [] : flatten([
      for shard in var.shards : [
        { id = "${shard}-binlogs", prefix = "${local.prefix}${shard}/2" },
        { id = "${shard}-snapshots", prefix = "${local.prefix}${shard}/snapshots/" },
      ]
    ])

    content {
      id     = "colder-${rule.value.id}"
      status = "Enabled"

      filter {
        prefix = rule.value.prefix
      }

      transition {
        days          = var.transition.days
        storage_class = var.transition.storage_class
      }
    }
  }

  dynamic "rule" {
    for_each = var.segments_expire_days == null ? [] : var.shards

    content {
      id     = "segments-${rule.value}"
      status = "Enabled"

      filter {
        prefix = "${local.prefix}${rule.value}/segments/"
      }

      expiration {
        days = var.segments_expire_days
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.archive]
}
