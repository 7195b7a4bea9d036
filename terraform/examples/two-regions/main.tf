# Two regions: an archive in each, and the roles of one shard. What lasts is here; the machine to recover on is in recovery/, a root module with a
# state of its own, which asks the DR region only.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }

  # Keep this state where the home region's end does not take it along: backend "s3" with a bucket of the DR region, for instance.
}

provider "aws" {
  alias  = "home"
  region = var.home_region
}

provider "aws" {
  alias  = "dr"
  region = var.dr_region
}

module "archive" {
  source    = "../../modules/archive"
  providers = { aws.home = aws.home, aws.dr = aws.dr }

  home_bucket         = "${var.name}-home"
  dr_bucket           = "${var.name}-dr"
  prefix              = "mysql"
  shards              = [var.shard]
  object_lock         = { mode = "GOVERNANCE", days = 7 }
  noncurrent_days     = 14
  home_transition     = { days = 30, storage_class = "STANDARD_IA" }
  dr_transition       = { days = 30, storage_class = "STANDARD_IA" }
  replication_enabled = var.replication_enabled
  accept_replicas     = var.accept_replicas
  return_enabled      = var.return_enabled
}

# The database nodes at home.
module "agent_home" {
  source    = "../../modules/agent-role"
  providers = { aws = aws.home }

  name        = "${var.name}-${var.shard}-agent"
  shard       = var.shard
  prefix      = "mysql"
  bucket_arn  = module.archive.home.bucket_arn
  kms_key_arn = module.archive.home.kms_key_arn

  replica = {
    bucket_arn  = module.archive.dr.bucket_arn
    kms_key_arn = module.archive.dr.kms_key_arn
  }

  ebs = {
    home_region  = var.home_region
    dr_region    = var.dr_region
    kms_key_arns = concat(var.volume_kms_key_arns, [module.archive.dr.kms_key_arn])
  }
}

# The DR instance before and after the recovery: an agent of the DR region's archive. At home, if that can be reached, it looks, and fences.
module "agent_dr" {
  source    = "../../modules/agent-role"
  providers = { aws = aws.dr }

  name        = "${var.name}-${var.shard}-agent-dr"
  shard       = var.shard
  prefix      = "mysql"
  bucket_arn  = module.archive.dr.bucket_arn
  kms_key_arn = module.archive.dr.kms_key_arn

  replica = {
    bucket_arn  = module.archive.home.bucket_arn
    kms_key_arn = module.archive.home.kms_key_arn
    fenced      = true
  }

  ebs = {
    home_region  = var.dr_region
    kms_key_arns = [module.archive.dr.kms_key_arn]
  }
}

# Made before the day, attached on the day.
module "recovery" {
  source    = "../../modules/recovery-role"
  providers = { aws = aws.dr }

  name             = "${var.name}-${var.shard}-recovery"
  shard            = var.shard
  region           = var.dr_region
  prefix           = "mysql"
  bucket_arn       = module.archive.dr.bucket_arn
  kms_key_arn      = module.archive.dr.kms_key_arn
  ebs_kms_key_arns = [module.archive.dr.kms_key_arn]
}

# Each region is pruned by itself, under a role of its own, not on the database nodes.
module "prune_home" {
  source    = "../../modules/prune-role"
  providers = { aws = aws.home }

  name        = "${var.name}-prune-home"
  shards      = [var.shard]
  prefix      = "mysql"
  bucket_arn  = module.archive.home.bucket_arn
  kms_key_arn = module.archive.home.kms_key_arn

  replica_bucket_arn = module.archive.dr.bucket_arn
  ebs_region         = var.home_region
}

module "prune_dr" {
  source    = "../../modules/prune-role"
  providers = { aws = aws.dr }

  name        = "${var.name}-prune-dr"
  shards      = [var.shard]
  prefix      = "mysql"
  bucket_arn  = module.archive.dr.bucket_arn
  kms_key_arn = module.archive.dr.kms_key_arn
  ebs_region  = var.dr_region
}

# A snapshot that was deleted can be had back for so long, whoever deleted it.
resource "aws_rbin_rule" "home" {
  provider      = aws.home
  description   = "EBS snapshots of mysql-pitr"
  resource_type = "EBS_SNAPSHOT"

  resource_tags {
    resource_tag_key   = "mysql-pitr:shard"
    resource_tag_value = var.shard
  }

  retention_period {
    retention_period_value = 7
    retention_period_unit  = "DAYS"
  }
}

resource "aws_rbin_rule" "dr" {
  provider      = aws.dr
  description   = "EBS snapshots of mysql-pitr"
  resource_type = "EBS_SNAPSHOT"

  resource_tags {
    resource_tag_key   = "mysql-pitr:shard"
    resource_tag_value = var.shard
  }

  retention_period {
    retention_period_value = 7
    retention_period_unit  = "DAYS"
  }
}
