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

data "aws_region" "home" {
  provider = aws.home
}

data "aws_region" "dr" {
  provider = aws.dr
}

module "to_dr" {
  source    = "../replication"
  providers = { aws = aws.home }

  source_bucket      = module.home
  destination_bucket = module.dr
  destination_region = data.aws_region.dr.region
  enabled            = var.replication_enabled
  storage_class      = var.dr_storage_class
  tags               = var.tags
}

# The way back, for the time in which the DR bucket is the one that is shipped to.
module "to_home" {
  source    = "../replication"
  providers = { aws = aws.dr }

  source_bucket      = module.dr
  destination_bucket = module.home
  destination_region = data.aws_region.home.region
  enabled            = var.return_enabled
  tags               = var.tags
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
