# The archive in two regions. Everything that is written at home is copied to the other region by S3; nothing that is deleted is.

module "home" {
  source    = "../bucket"
  providers = { aws = aws.home }

  bucket               = var.home_bucket
  prefix               = var.prefix
  shards               = var.shards
  object_lock          = var.object_lock
  noncurrent_days      = var.noncurrent_days
  abort_uploads_days   = var.abort_uploads_days
  transition           = var.home_transition
  segments_expire_days = var.segments_expire_days
  access_log_bucket    = var.home_access_log_bucket
  tags                 = var.tags
}

module "dr" {
  source    = "../bucket"
  providers = { aws = aws.dr }

  bucket               = var.dr_bucket
  prefix               = var.prefix
  shards               = var.shards
  object_lock          = var.object_lock
  noncurrent_days      = var.noncurrent_days
  abort_uploads_days   = var.abort_uploads_days
  transition           = var.dr_transition
  segments_expire_days = var.segments_expire_days
  accept_replicas      = var.accept_replicas
  access_log_bucket    = var.dr_access_log_bucket
  tags                 = var.tags
}
